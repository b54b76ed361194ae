"""Ranks of matched images and captions, by counting the scores that are at least as high: no sort, and ties count.

From a matrix of similarities on any device; or from embeddings on a GPU, by a Triton kernel that makes the products
tile by tile and stores none of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from capbench.errors import CapbenchError
from capbench.kernels._triton import runs_triton

_BLOCK_BYTES = 2**22


def counted_ranks(
    similarity: Float[Tensor, "image caption"], image_of_caption: Int[Tensor, " caption"]
) -> tuple[Int[Tensor, " image"], Int[Tensor, " caption"]]:
    """Rank of each image's best caption and of each caption's image, 0 first, on the device of `similarity`.

    An image's rank counts the captions of other images that score at least as high as the best of its own; a
    caption's rank counts the other images that score at least as high as its own. Each image has a caption.
    Deterministic. Raises CapbenchError when a similarity is NaN.
    """
    captions = similarity.shape[1]
    image_of_caption = image_of_caption.to(similarity.device)
    matched = similarity[image_of_caption, torch.arange(captions, device=similarity.device)]
    rows = []
    columns = torch.zeros(captions, dtype=torch.int64, device=similarity.device)
    for part in _row_blocks(similarity):
        rows.append(image_ranks(similarity[part], matched, image_of_caption, part))
        columns += (similarity[part] >= matched).sum(0, dtype=torch.int32)
    return torch.cat(rows), columns - 1


def product_ranks(
    images: Float[Tensor, "image dim"],
    captions: Float[Tensor, "caption dim"],
    image_of_caption: Int[Tensor, " caption"],
) -> tuple[Int[Tensor, " image"], Int[Tensor, " caption"]] | None:
    """`counted_ranks` of the dot products by a Triton kernel that holds no matrix; None where Triton does not serve.

    Matched and other scores come from the same arithmetic, in float32: products of float32 embeddings are exact ones,
    not tf32, and those of bf16 and float16 are added in float32. Deterministic. Raises CapbenchError for NaN.
    """
    if not (runs_triton(images) and runs_triton(captions)):
        return None
    from capbench.kernels import ranks_triton

    return ranks_triton.product_ranks(images, captions, image_of_caption.to(images.device))


def image_ranks(
    rows: Float[Tensor, "some caption"],
    matched: Float[Tensor, " caption"],
    image_of_caption: Int[Tensor, " caption"],
    part: slice,
) -> Int[Tensor, " some"]:
    """Ranks of one block of images; `matched` need be right for the captions of these images only."""
    refuse_nan(bool(rows.amax().isnan()))
    images = len(rows)
    own = captions_of(part, image_of_caption)
    owner, score = image_of_caption[own] - part.start, matched[own]
    best = score.new_full((images,), -torch.inf).scatter_reduce(0, owner, score, "amax")
    at_least = (rows >= best[:, None]).sum(1, dtype=torch.int32).to(torch.int64)
    return at_least - torch.bincount(owner[score >= best[owner]], minlength=images)


def captions_of(images: slice, image_of_caption: Int[Tensor, " caption"]) -> Int[Tensor, " own"]:
    """The captions of the images from `images.start` to before `images.stop`."""
    return torch.nonzero((image_of_caption >= images.start) & (image_of_caption < images.stop)).flatten()


def refuse_nan(found: bool) -> None:
    """Raise CapbenchError where NaN was found among the similarities."""
    if found:
        raise CapbenchError("the similarities hold NaN: the model has diverged, or a zero was normalised")


def _row_blocks(similarity: Tensor) -> Iterator[slice]:
    """Blocks of rows that stay in the processor's cache while they are counted; larger on an accelerator."""
    target = _BLOCK_BYTES if similarity.device.type == "cpu" else 2**6 * _BLOCK_BYTES
    rows = max(1, target // max(1, similarity.shape[1] * similarity.element_size()))
    return (slice(start, start + rows) for start in range(0, len(similarity), rows))
