"""Ranks of matched images and captions, by counting the scores that are at least as high: no sort, and ties count.

Scores are made tile by tile, each tile once, and counted while they lie in the processor's cache; on a GPU a Triton
kernel makes and counts those of embeddings and stores none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from capbench.errors import CapbenchError
from capbench.kernels._scratch import scratch
from capbench.kernels._triton import runs_triton

Scores = Callable[[slice, slice], Tensor]
log = logging.getLogger(__name__)


def counted_ranks(
    scores: Scores, image_of_caption: Int[Tensor, " caption"], images: int, at_once: int
) -> tuple[Int[Tensor, " image"], Int[Tensor, " caption"]]:
    """Rank of each image's best caption and of each caption's image, 0 first, on the device of `image_of_caption`.

    `scores(rows, columns)` gives the similarities of a slice of the images and a slice of the captions, which come in
    the order of their images; every image has one. What it gave may be gone when it is called again. An image's rank
    counts the captions of other images that score at least as high as the best of its own; a caption's rank counts the
    other images that score at least as high as its own. Memory: one tile of `at_once` images and their captions, which
    is halved when memory runs out, and five numbers for each image and caption. Deterministic.
    Raises CapbenchError when a similarity is NaN, or when one image at a time does not fit in memory.
    """
    counts = _Counts(scores, image_of_caption, images)
    start = 0
    while start < images:
        rows = slice(start, min(start + at_once, images))
        kept = counts.by_image.clone(), counts.by_caption.clone()
        try:
            counts.add(rows)
            start = rows.stop
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            if rows.stop - rows.start == 1:
                raise CapbenchError("the similarities of one image do not fit in memory; free some") from error
            counts.by_image, counts.by_caption = kept
            at_once = (rows.stop - rows.start) // 2
            log.warning("out of memory in evaluation: going on by %d images at a time", at_once)
    refuse_nan(bool(counts.nan))
    return counts.by_image, counts.by_caption


@dataclass(frozen=True)
class _Block:
    """Consecutive images and their captions; `best` is the highest matched score of each image."""

    rows: slice
    columns: slice
    best: Tensor
    matched: Tensor


class _Counts:
    """The square of blocks grows by one block at a time, so that the matched scores of a tile are always known."""

    def __init__(self, scores: Scores, owner: Tensor, images: int) -> None:
        self.scores, self.owner, self.blocks = scores, owner, list[_Block]()
        self.by_image, self.by_caption = owner.new_zeros(images), torch.zeros_like(owner)
        self.nan = torch.zeros((), dtype=torch.bool, device=owner.device)

    def add(self, rows: slice) -> None:
        """Count the next images and their captions against themselves and against all before them."""
        ends = torch.tensor([rows.start, rows.stop], device=self.owner.device)
        columns = slice(*torch.searchsorted(self.owner, ends).tolist())
        block = self._own_block(rows, columns)
        for other in self.blocks:
            self._count(self.scores(other.rows, columns), other, block)
            self._count(self.scores(rows, other.columns), block, other)
        self.blocks.append(block)

    def _own_block(self, rows: slice, columns: slice) -> _Block:
        tile, owner = self.scores(rows, columns), self.owner[columns] - rows.start
        matched = tile[owner, torch.arange(len(owner), device=tile.device)]
        best = tile.new_full((len(tile),), -torch.inf).scatter_reduce(0, owner, matched, "amax")
        block = _Block(rows, columns, best, matched)
        self._count(tile, block, block)
        self.by_image[rows] -= torch.bincount(owner[matched >= best[owner]], minlength=len(tile))
        self.by_caption[columns] -= 1
        return block

    def _count(self, tile: Tensor, images: _Block, captions: _Block) -> None:
        self.nan |= tile.amax().isnan()
        ahead = scratch("ranks", tuple(tile.shape), tile, torch.bool)
        self.by_image[images.rows] += torch.ge(tile, images.best[:, None], out=ahead).sum(1, dtype=torch.int32)
        self.by_caption[captions.columns] += torch.ge(tile, captions.matched, out=ahead).sum(0, dtype=torch.int32)


def dot_products(images: Float[Tensor, "image dim"], captions: Float[Tensor, "caption dim"]) -> Scores:
    """The `scores` of `counted_ranks` by the dot product; a tile lies where the last one lay."""

    def scores(rows: slice, columns: slice) -> Tensor:
        v, c = images[rows], captions[columns]
        return torch.mm(v, c.T, out=scratch("ranks", (len(v), len(c)), v))

    return scores


def embedding_ranks(
    images: Float[Tensor, "image dim"],
    captions: Float[Tensor, "caption dim"],
    image_of_caption: Int[Tensor, " caption"],
    order: bool = False,
) -> tuple[Int[Tensor, " image"], Int[Tensor, " caption"]] | None:
    """The ranks by dot products, or by the order similarity, from a Triton kernel; None where Triton does not serve.

    No tile is held, and captions may come in any order. Matched and other scores come from the same arithmetic:
    products of float32 in three bf16 parts, those of bf16 and float16 exact, all added in float32. Where d = 1,024 and
    the norm 1, the three parts leave an error of some 1e-7, float32 one of 1e-8: scores that differ by less may change
    places, equal ones are ties. Deterministic. Raises CapbenchError for NaN.
    """
    if not (runs_triton(images) and runs_triton(captions)):
        return None
    from capbench.kernels import ranks_triton

    return ranks_triton.embedding_ranks(images, captions, image_of_caption.to(images.device), order)


def refuse_nan(found: bool) -> None:
    """Raise CapbenchError where NaN was found among the similarities."""
    if found:
        raise CapbenchError("the similarities hold NaN: the model has diverged, or a zero was normalised")


def _out_of_memory(error: Exception) -> bool:
    """Whether torch, on any device, or Python says that memory ran out."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or any(word in str(error).lower() for word in words)
