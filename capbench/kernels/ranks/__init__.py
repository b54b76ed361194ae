"""Ranks of matched images and captions, by counting the scores that are at least as high: no sort, and ties count.

Scores are made tile by tile, each tile once, and counted while they lie in the processor's cache; on a GPU a Triton
kernel makes and counts those of embeddings and stores none. Ranks of embeddings are those of exact scores: a tile
decides the pairs that are clear of its rounding, and the exact score of a pair the others.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from capbench.kernels._triton import runs_triton
from capbench.kernels.ranks.counts import Scores, Square, Tiles, images_at_once
from capbench.kernels.ranks.exact import Contest, refuse_nan


def embedding_ranks(
    images: Float[Tensor, "image dim"],
    captions: Float[Tensor, "caption dim"],
    image_of_caption: Int[Tensor, " caption"],
    order: bool = False,
    at_once: int | None = None,
) -> tuple[Int[Tensor, " image"], Int[Tensor, " caption"]]:
    """Rank of each image's best caption and of each caption's image, 0 first, by dot products or the order similarity.

    Every image has a caption; captions come in any order. The ranks are those of the exact scores of
    `capbench.kernels.ranks.exact`, so that equal embeddings tie, and neither tile nor threads nor device change a rank.
    A Triton kernel serves a GPU, and holds no tile. Elsewhere, in float64, and where too much is too close for the
    kernel, memory is one tile of `at_once` images and as large a share of the captions, which is halved when memory
    runs out, some numbers for each image and caption, and float64 copies of a tile's embeddings where most scores are
    nearly equal. Raises CapbenchError for NaN, or when one image at a time does not fit in memory.
    """
    owner = image_of_caption.to(images.device).long()
    if not len(owner):
        return owner.new_zeros(len(images)), owner
    contest = Contest.of(images.detach(), captions.detach(), owner, order)
    if runs_triton(images) and runs_triton(captions):
        from capbench.kernels.ranks import triton as ranks_triton

        counted = ranks_triton.counted(contest)
        if counted is not None:
            return counted
    counts = Tiles(contest)
    counts.add_all(at_once or images_at_once(len(images), len(captions), images.device))
    return counts.by_image, counts.by_caption


def counted_ranks(
    scores: Scores, image_of_caption: Int[Tensor, " caption"], images: int, at_once: int
) -> tuple[Int[Tensor, " image"], Int[Tensor, " caption"]]:
    """The same from any scores, on the device of `image_of_caption`.

    `scores(rows, columns)` gives the similarities of a slice of the images and a slice of the captions, which come in
    the order of their images; every image has one. What it gave may be gone when it is called again. An image's rank
    counts the captions of other images that score at least as high as the best of its own; a caption's rank counts the
    other images that score at least as high as its own. Memory: one tile of `at_once` images and their captions, which
    is halved when memory runs out, and five numbers for each image and caption. Deterministic.
    Raises CapbenchError when a similarity is NaN, or when one image at a time does not fit in memory.
    """
    counts = Square(scores, image_of_caption, images)
    counts.add_all(at_once)
    refuse_nan(bool(counts.nan))
    return counts.by_image, counts.by_caption
