"""Ranks of matched images and captions, by counting the scores that are at least as high: no sort, and ties count.

Each tile of scores is made once and counted in the cache; on a GPU a Triton kernel never stores it. Ranks of embeddings
are those of exact scores: a tile decides the pairs that are clear of its rounding, exact scores the others.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from capbench.kernels._arguments import Array, embeddings
from capbench.kernels._triton import on_device_of, runs_triton
from capbench.kernels.ranks.cpu import Scores, Square, Tiles
from capbench.kernels.ranks.exact import Contest, refuse_nan


def embedding_ranks(
    images: Float[Array, "image dim"], captions: Float[Array, "caption dim"],
    image_of_caption: Int[Array, " caption"], order: bool = False, at_once: int | None = None,
) -> tuple[Int[Tensor, " image"], Int[Tensor, " caption"]]:  # fmt: skip
    """Rank of each image's best caption and of each caption's image, from 0, by dot products or the order similarity.

    Every image has a caption; captions come in any order. Equal embeddings tie, and no tile, thread count or device
    changes a rank. The Triton kernel holds no tile. Elsewhere, in float64, and where too many scores are close, memory
    is one tile of `at_once` images and as large a share of the captions as fits it, halved when memory runs out, some
    numbers for each image and caption, and float64 copies of a tile's embeddings where most scores are nearly equal.
    Raises CapbenchError for wrong types or shapes, NaN, or when one image at a time does not fit in memory.

    >>> import torch
    >>> from capbench.kernels.ranks import embedding_ranks
    >>> captions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.5, 0.5]])
    >>> by_image, by_caption = embedding_ranks(torch.eye(2), captions, torch.tensor([0, 0, 1, 1]))
    >>> by_image.tolist(), by_caption.tolist()
    ([0, 1], [0, 1, 0, 1])
    """
    images, captions, image_of_caption = embeddings(images, captions, image_of_caption)
    if not len(captions):
        return image_of_caption.new_zeros(len(images)), image_of_caption
    return ranks_of(Contest.of(images, captions, image_of_caption, order), at_once)


def ranks_of(contest: Contest, at_once: int | None = None) -> tuple[Int[Tensor, " image"], Int[Tensor, " caption"]]:
    """The same from a contest, or from a share of one: then of each caption the images of the share that are ahead.

    >>> import torch
    >>> from capbench.kernels.ranks import ranks_of
    >>> from capbench.kernels.ranks.exact import Contest
    >>> contest = Contest.of(torch.eye(2), torch.tensor([[0.6, 0.8], [0.8, 0.6]]), torch.tensor([0, 1]), order=False)
    >>> by_image, by_caption = ranks_of(contest.share(slice(1, 2)))
    >>> by_image.tolist(), by_caption.tolist()
    ([1], [1, 0])
    """
    if runs_triton(contest.images) and runs_triton(contest.captions):
        from capbench.kernels.ranks import triton

        with on_device_of(contest.images):
            counted = triton.counted(contest)
        if counted is not None:
            return counted
    return Tiles(contest).counted(at_once)


def counted_ranks(
    scores: Scores, image_of_caption: Int[Tensor, " caption"], images: int, at_once: int | None = None
) -> tuple[Int[Tensor, " image"], Int[Tensor, " caption"]]:
    """The same from any scores, on the device of `image_of_caption`.

    `scores(rows, columns)` returns the similarities of a slice of the images and a slice of the captions, sorted by
    image; every image has one. The next call may overwrite them. An image's rank counts the captions of other images
    that score at least as high as the best of its own; a caption's rank counts the other images that score at least as
    high as its own. Memory: one tile of `at_once` images and their captions, halved when memory runs out, and five
    numbers for each image and caption. Deterministic.
    Raises CapbenchError when a similarity is NaN, or when one image at a time does not fit in memory.

    >>> import torch
    >>> from capbench.kernels.ranks import counted_ranks
    >>> similarity = torch.tensor([[0.9, 0.2, 0.95], [0.1, 0.3, 0.8]])
    >>> by_image, by_caption = counted_ranks(lambda *tile: similarity[tile], torch.tensor([0, 0, 1]), 2, at_once=1)
    >>> by_image.tolist(), by_caption.tolist()
    ([1, 0], [0, 1, 1])
    """
    counts = Square(scores, image_of_caption, images)
    ranks = counts.counted(at_once)
    refuse_nan(bool(counts.nan))
    return ranks
