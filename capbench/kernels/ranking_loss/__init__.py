"""The ranking losses of a joint embedding: the sum and the max of hinges of VSE++, whose equations are in reference.py.

A small batch on a CPU takes the whole matrix of similarities. A larger one is streamed by blocks of rows: the max
searches the hardest negatives without a gradient and is then a function of them alone, with a backward pass of
O(pair x dim); for the sum, each block yields its gradient with its hinges. A GPU runs Triton kernels.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.kernels._arguments import Array, same_dtype, tensors
from capbench.kernels._triton import on_device_of, runs_triton
from capbench.kernels.ranking_loss import cpu
from capbench.kernels.ranking_loss.reference import LOSSES, SIMILARITIES, Loss, Similarity


def ranking_loss(
    images: Float[Array, "pair dim"], captions: Float[Array, "pair dim"], image_ids: Int[Array, " pair"],
    margin: float, loss: Loss, similarity: Similarity = "dot",
) -> Float[Tensor, ""]:  # fmt: skip
    """The sum of a loss, equation 5 or 6, over a batch of matched pairs, in float32 or float64.

    `image_ids` names the image of each pair: pairs of one image are not negatives of each other. For cosine
    similarities, normalise the embeddings and take "dot". A hinge of exactly zero has no gradient. Where the hardest
    negatives tie, the first has the gradient; on a CPU a small batch of the order, like the reference, shares it.

    Deterministic on a CPU for a given number of threads, and in the Triton kernels; float64 on a GPU, which has no
    kernel, as far as torch is. Half-precision embeddings are multiplied exactly, or subtracted in float32, and summed
    in float32. Autocast applies only to the dot product on a GPU.
    Raises CapbenchError for wrong types or shapes, an empty batch, or an unknown loss or similarity.

    >>> import torch
    >>> from capbench.kernels.ranking_loss import ranking_loss
    >>> images, captions = torch.eye(2), torch.tensor([[0.75, 0.5], [0.25, 0.5]])
    >>> float(ranking_loss(images, captions, torch.tensor([0, 1]), 0.25, "max_of_hinges"))
    0.25
    """
    images, captions, image_ids = tensors(
        images=(images, "float pair+ dim+"), captions=(captions, "float pair dim"), image_ids=(image_ids, "int pair")
    )
    same_dtype(images=images, captions=captions)
    if loss not in LOSSES:
        raise CapbenchError(f"loss must be {' or '.join(LOSSES)}, not {loss!r}")
    if similarity not in SIMILARITIES:
        raise CapbenchError(f"similarity must be {' or '.join(SIMILARITIES)}, not {similarity!r}")
    image_ids = image_ids.to(images.device)
    if runs_triton(images):
        from capbench.kernels.ranking_loss import triton

        with on_device_of(images):
            return triton.ranking_loss(images, captions, image_ids, margin, loss, similarity)
    return cpu.ranking_loss(images, captions, image_ids, margin, loss, similarity)
