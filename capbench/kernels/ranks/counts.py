"""Ranks counted tile by tile, on any device: from embeddings, or from any scores."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.kernels._scratch import scratch
from capbench.kernels.ranks.exact import Band, Contest, pairs_at_once

Scores = Callable[[slice, slice], Tensor]
CPU_TILE, GPU_TILE = 5 * 2**18, 2**28  # similarities: 5 MB stay in a processor's cache, 1 GiB fills a GPU
CPU_STRIP, GPU_STRIP = 2**18, 2**26  # similarities of a tile that are compared at once
OPEN = 2**15  # pairs that wait for their exact scores
CROWDED = 16  # where more than one pair of so many is open, a strip is made again in float64
log = logging.getLogger(__name__)


def images_at_once(images: int, captions: int, device: torch.device) -> int:
    """The images of a tile that fits the device, with as large a share of the captions."""
    tile = CPU_TILE if device.type == "cpu" else GPU_TILE
    return max(1, math.isqrt(tile * images // max(1, captions)))


class _Counts(ABC):
    """Counts for each image and caption, to which some images at a time add theirs."""

    def __init__(self, owner: Tensor, images: int) -> None:
        self.owner, self.images = owner, images
        self.by_image, self.by_caption = owner.new_zeros(images), torch.zeros_like(owner)

    @abstractmethod
    def add(self, rows: slice) -> None:
        """Count some images."""

    def add_all(self, at_once: int) -> None:
        """Add all images, in even parts of at most `at_once` or, when memory runs out, of fewer."""
        start = 0
        while start < self.images:
            left = self.images - start
            rows = slice(start, start + math.ceil(left / math.ceil(left / at_once)))
            kept = self.by_image.clone(), self.by_caption.clone()
            try:
                self.add(rows)
                start = rows.stop
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                if rows.stop - rows.start == 1:
                    raise CapbenchError("the similarities of one image do not fit in memory; free some") from error
                self.by_image, self.by_caption = kept
                at_once = (rows.stop - rows.start) // 2
                log.warning("out of memory in evaluation: going on by %d images at a time", at_once)


class Tiles(_Counts):
    """Counts from embeddings: the scores to beat are known, so that tiles may come in any order."""

    def __init__(self, contest: Contest) -> None:
        super().__init__(contest.owner, len(contest.images))
        self.contest, self.dtype = contest, _tile_dtype(contest)
        self.strip = CPU_STRIP if self.owner.device.type == "cpu" else GPU_STRIP
        self.bands: dict[torch.dtype, tuple[Band, Band]] = {}
        self.open: tuple[list[Tensor], list[Tensor]] = [], []  # pairs [2, pair]: for their images, for their captions

    def add(self, rows: slice) -> None:
        """Count some images against all captions."""
        self.open = [], []
        tiles = math.ceil(self.images / (rows.stop - rows.start))
        for columns in _parts(0, len(self.owner), math.ceil(len(self.owner) / tiles)):
            tile = self._tile(rows, columns, self.dtype)
            for some in _parts(rows.start, rows.stop, max(1, self.strip // tile.shape[1])):
                self._count(tile[some.start - rows.start : some.stop - rows.start], some, columns)
        self._settle()

    def _tile(self, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
        """Scores up to rounding; those of matched pairs, which do not count, are -inf."""
        v, c = self.contest.images[rows].to(dtype), self.contest.captions[columns].to(dtype)
        tile = scratch("ranks", (len(v), len(c)), v)
        if self.contest.order:
            _orders(v, c, tile)
        else:
            torch.mm(v, c.T, out=tile)
        owner = self.owner[columns] - rows.start
        own = ((owner >= 0) & (owner < len(tile))).nonzero()[:, 0]
        tile[owner[own], own] = -torch.inf
        return tile

    def _count(self, scores: Tensor, rows: slice, columns: slice) -> None:
        """Count what is clear in a part of a tile, and gather what is open."""
        of_image, of_caption = self._bands(scores.dtype)
        mask = scratch("ranks compared", tuple(scores.shape), scores)
        images, captions = _Side(scores, of_image, rows, mask), _Side(scores.T, of_caption, columns, mask.T)
        crowded = int(images.open.sum() + captions.open.sum()) > scores.numel() // CROWDED
        if crowded and scores.dtype is not torch.float64:
            self._count(self._tile(rows, columns, torch.float64), rows, columns)
            return
        self.by_image[rows] += images.ahead
        self.by_caption[columns] += captions.ahead
        self.open[0].append(images.open_pairs(columns))
        self.open[1].append(captions.open_pairs(rows).flip(0))
        if crowded or sum(pairs.shape[1] for pairs in (*self.open[0], *self.open[1])) > OPEN:
            self._settle(repeated=crowded)

    def _bands(self, dtype: torch.dtype) -> tuple[Band, Band]:
        if dtype not in self.bands:
            self.bands[dtype] = self.contest.bands(dtype, torch.finfo(dtype).eps / 2)
        return self.bands[dtype]

    def _settle(self, repeated: bool = False) -> None:
        """Count the open pairs by their exact scores."""
        if not self.open[0]:
            return
        for_images, for_captions = (torch.cat(pairs, 1) for pairs in self.open)
        rows, columns = torch.cat([for_images, for_captions], 1)
        over_image, over_caption = self.contest.over(rows, columns, repeated)
        split = for_images.shape[1]
        self.by_image += torch.bincount(rows[:split][over_image[:split]], minlength=self.images)
        self.by_caption += torch.bincount(columns[split:][over_caption[split:]], minlength=len(self.owner))
        self.open = [], []


class _Side:
    """A part of a tile as its images see it, [line, candidate], or, transposed, its captions: who is ahead of a line.

    `ahead` and `open`, [line] both, count the candidates that are clearly ahead, and those that are not clear.
    """

    def __init__(self, scores: Tensor, band: Band, lines: slice, mask: Tensor) -> None:
        self.scores, self.lines, self.low, self.high = scores, lines, band.low[lines, None], band.high[lines, None]
        self.ahead = torch.gt(scores, self.high, out=mask).sum(1).long()
        self.open = scores.shape[1] - self.ahead - torch.lt(scores, self.low, out=mask).sum(1).long()

    def open_pairs(self, candidates: slice) -> Tensor:
        """Line and candidate of each pair that is not clear, [2, pair], among all lines and candidates."""
        lines = self.open.nonzero()[:, 0]
        some = self.scores[lines]
        clear = (some > self.high[lines]) | (some < self.low[lines])
        line, candidate = clear.logical_not_().nonzero(as_tuple=True)
        return torch.stack([lines[line] + self.lines.start, candidate + candidates.start])


def _orders(images: Tensor, captions: Tensor, tile: Tensor) -> None:
    """-||max(0, c - i)|| of each image and caption, one image and what fits the cache of the captions at a time."""
    some = pairs_at_once(captions)
    for part, scores in zip(captions.split(some), tile.split(some, 1), strict=True):
        terms = scratch("ranks order", tuple(part.shape), part)
        for image, row in zip(images, scores, strict=True):
            torch.sub(part, image, out=terms).clamp_(min=0).square_()
            torch.sum(terms, 1, out=row)
    tile.add_(1e-12).sqrt_().neg_()


def _tile_dtype(contest: Contest) -> torch.dtype:
    """What tiles are made in: float32 on a CPU, unless products of float32 are not made as such there."""
    wide = torch.promote_types(contest.images.dtype, contest.captions.dtype)
    precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    rounds_more = not contest.order and precision not in ("none", "ieee")
    exact = wide is torch.float64 or contest.images.device.type != "cpu" or rounds_more
    return torch.float64 if exact else torch.float32


def _parts(start: int, stop: int, step: int) -> Iterator[slice]:
    yield from (slice(at, min(at + step, stop)) for at in range(start, stop, step))


@dataclass(frozen=True)
class _Block:
    """Consecutive images and their captions; `best` is the highest matched score of each image."""

    rows: slice
    columns: slice
    best: Tensor
    matched: Tensor


class Square(_Counts):
    """Counts from any scores: the square of blocks grows block by block, so that matched scores are known."""

    def __init__(self, scores: Scores, owner: Tensor, images: int) -> None:
        super().__init__(owner, images)
        self.scores, self.blocks = scores, list[_Block]()
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


def _out_of_memory(error: Exception) -> bool:
    """Whether torch, on any device, or Python says that memory ran out."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or any(word in str(error).lower() for word in words)
