"""The hinge ranking losses of a joint embedding: as their equations, and without the matrix of a large batch.

Legend: S[i, c] = s(i, c), the similarity of image i and caption c, of which S[k, k] is a matched pair; alpha, the
margin. The equations are those of VSE++ (Faghri et al., BMVC 2018, section 2).

A small batch on a CPU takes the whole matrix. A larger one is streamed by blocks of rows: the hardest negatives are
found without a gradient, and the loss is then a function of the winners alone, so that its backward pass costs
O(pair x dim); for the sum the gradient of a block is made with the block. A GPU has Triton kernels for all of them.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.kernels._triton import runs_triton
from capbench.kernels.ranking_loss import cpu
from capbench.kernels.ranking_loss.reference import MEASURES, Negatives, Similarity


def ranking_loss(
    images: Float[Tensor, "pair dim"],
    captions: Float[Tensor, "pair dim"],
    owner: Int[Tensor, " pair"],
    margin: float,
    negatives: Negatives,
    similarity: Similarity = "cosine",
) -> Float[Tensor, ""]:
    """Equation 6 (`negatives` = "hardest") or equation 5 ("sum") over a batch of pairs, in single precision at least.

    `owner` is the image id of each pair: pairs of equal id are no negatives of each other. The whole [pair, pair]
    matrix is held for a small batch on a CPU only. Values are those of `reference_ranking_loss` up to rounding.
    A hinge of exactly zero has no gradient, and of equally hard negatives the first has all of it, where the reference,
    which a small batch of the order on a CPU takes, shares it among them. Forward and backward are deterministic: on a
    CPU for a given number of threads, and in the Triton kernels, which add no floating-point numbers atomically;
    float64 on a GPU, which has no kernels, is as deterministic as torch is set to be.
    Half-precision embeddings are multiplied exactly, or subtracted in float32, and added in float32. Autocast counts
    for the cosine on a GPU alone. Raises CapbenchError for an unknown option, an empty batch, or unequal numbers of
    pairs.
    """
    _check(images, captions, owner, negatives, similarity)
    owner = owner.to(images.device)
    if runs_triton(images):
        from capbench.kernels.ranking_loss import triton as ranking_loss_triton

        return ranking_loss_triton.ranking_loss(images, captions, owner, margin, negatives, similarity)
    return cpu.ranking_loss(images, captions, owner, margin, negatives, similarity)


def _check(images: Tensor, captions: Tensor, owner: Tensor, negatives: str, similarity: str) -> None:
    if negatives not in ("hardest", "sum"):
        raise CapbenchError(f"the negatives are hardest or sum, not {negatives!r}")
    if similarity not in MEASURES:
        raise CapbenchError(f"the similarity is cosine or order, not {similarity!r}")
    if not 0 < len(images) == len(captions) == len(owner):
        raise CapbenchError(
            f"a batch needs pairs: {len(images)} images, {len(captions)} captions and {len(owner)} owners are none"
        )
    if images.dtype != captions.dtype:
        raise CapbenchError(f"images are {images.dtype} and captions {captions.dtype}: bring them to one type")
