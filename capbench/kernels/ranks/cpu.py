"""Ranks counted tile by tile, from embeddings or from any scores, on any device."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from capbench.base.errors import CapbenchError, out_of_memory
from capbench.kernels._blocks import scratch, slices
from capbench.kernels.ranks.exact import Band, Contest, pairs_at_once

Scores = Callable[[slice, slice], Tensor]
CPU_TILE, GPU_TILE = 5 * 2**18, 2**28  # similarities: 5 MB stay in a processor's cache, 1 GiB fills a GPU
CPU_STRIP, GPU_STRIP = 2**18, 2**26  # similarities of a tile that are compared at once
OPEN = 2**15  # pairs that may wait for their exact scores
CROWDED = 16  # with more than one open pair in so many, a strip is recomputed in float64
log = logging.getLogger(__name__)


class _Counts(ABC):
    """Counts for each image and caption, added up by blocks of images."""

    def __init__(self, image_of_caption: Tensor, images: int) -> None:
        self.image_of_caption, self.images = image_of_caption, images
        self.by_image, self.by_caption = image_of_caption.new_zeros(images), torch.zeros_like(image_of_caption)
        self.on_cpu = image_of_caption.device.type == "cpu"
        self.most = CPU_TILE if self.on_cpu else GPU_TILE  # similarities of a tile

    @abstractmethod
    def add(self, rows: slice) -> None:
        """Count a block of images."""

    def counted(self, at_once: int | None) -> tuple[Tensor, Tensor]:
        """The counts, made in even blocks of at most `at_once` images, or of fewer when memory runs out.

        By default a tile of these images and as large a share of the captions fits the device.
        """
        at_once = at_once or max(1, math.isqrt(self.most * self.images // max(1, len(self.by_caption))))
        start = 0
        while start < self.images:
            left = self.images - start
            rows = slice(start, start + math.ceil(left / math.ceil(left / at_once)))
            kept = self.by_image.clone(), self.by_caption.clone()
            try:
                self.add(rows)
                start = rows.stop
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if rows.stop - rows.start == 1:
                    raise CapbenchError("the similarities of one image do not fit in memory; free some") from error
                self.by_image, self.by_caption = kept
                at_once = (rows.stop - rows.start) // 2
                log.warning("out of memory in evaluation: retrying with %d images at a time", at_once)
        return self.by_image, self.by_caption


class Tiles(_Counts):
    """Counts from embeddings: the scores to beat are known beforehand, so tiles may come in any order."""

    def __init__(self, contest: Contest) -> None:
        super().__init__(contest.image_of_caption, len(contest.images))
        self.contest, self.dtype = contest, _tile_dtype(contest)
        self.strip = CPU_STRIP if self.on_cpu else GPU_STRIP
        self.bands = cache(lambda dtype: contest.bands(dtype, torch.finfo(dtype).eps / 2))
        self.open: tuple[list[Tensor], list[Tensor]] = [], []  # pairs [2, pair]: for their images, for their captions

    def add(self, rows: slice) -> None:
        """Count a block of images against all captions."""
        self.open = [], []
        height, captions = rows.stop - rows.start, len(self.image_of_caption)
        tiles = max(math.ceil(self.images / height), math.ceil(captions * height / self.most))
        for columns in slices(0, captions, math.ceil(captions / tiles)):
            tile = self._tile(rows, columns, self.dtype)
            for some in slices(rows.start, rows.stop, max(1, self.strip // tile.shape[1])):
                self._count(tile[some.start - rows.start : some.stop - rows.start], some, columns)
        self._settle()

    def _tile(self, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
        """Scores up to rounding; those of matched pairs, which never count, are -inf."""
        v, c = self.contest.images[rows].to(dtype), self.contest.captions[columns].to(dtype)
        tile = scratch("ranks", (len(v), len(c)), v)
        if self.contest.order:
            _orders(v, c, tile)
        else:
            torch.mm(v, c.T, out=tile)
        row = self.image_of_caption[columns] - rows.start
        matched = ((row >= 0) & (row < len(tile))).nonzero()[:, 0]
        tile[row[matched], matched] = -torch.inf
        return tile

    def _count(self, scores: Tensor, rows: slice, columns: slice) -> None:
        """Count the clear pairs of a strip, and collect the open ones."""
        of_image, of_caption = self.bands(scores.dtype)
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

    def _settle(self, repeated: bool = False) -> None:
        """Count the open pairs by their exact scores."""
        if not self.open[0]:
            return
        for_images, for_captions = (torch.cat(pairs, 1) for pairs in self.open)
        rows, columns = torch.cat([for_images, for_captions], 1)
        over_image, over_caption = self.contest.over(rows, columns, repeated)
        split = for_images.shape[1]
        self.by_image += torch.bincount(rows[:split][over_image[:split]], minlength=self.images)
        self.by_caption += torch.bincount(columns[split:][over_caption[split:]], minlength=len(self.image_of_caption))
        self.open = [], []


class _Side:
    """A strip as its images see it, [line, candidate], or transposed, its captions.

    `ahead` and `open` [line] count the candidates that are clearly ahead, and those that are not clear.
    """

    def __init__(self, scores: Tensor, band: Band, lines: slice, mask: Tensor) -> None:
        self.scores, self.lines, (self.low, self.high) = scores, lines, (bound[lines, None] for bound in band)
        self.ahead = torch.gt(scores, self.high, out=mask).sum(1).long()
        self.open = scores.shape[1] - self.ahead - torch.lt(scores, self.low, out=mask).sum(1).long()

    def open_pairs(self, candidates: slice) -> Tensor:
        """The line and candidate of each open pair, [2, pair], numbered among all lines and candidates."""
        lines = self.open.nonzero()[:, 0]
        some = self.scores[lines]
        clear = (some > self.high[lines]) | (some < self.low[lines])
        line, candidate = clear.logical_not_().nonzero(as_tuple=True)
        return torch.stack([lines[line] + self.lines.start, candidate + candidates.start])


def _orders(images: Tensor, captions: Tensor, tile: Tensor) -> None:
    """-||max(0, c - i)||, for one image and the captions that fit the cache at a time."""
    at_once = pairs_at_once(captions)
    for block, scores in zip(captions.split(at_once), tile.split(at_once, 1), strict=True):
        terms = scratch("ranks order", tuple(block.shape), block)
        for image, row in zip(images, scores, strict=True):
            torch.sub(block, image, out=terms).clamp_(min=0).square_()
            torch.sum(terms, 1, out=row)
    tile.add_(1e-12).sqrt_().neg_()


def _tile_dtype(contest: Contest) -> torch.dtype:
    """The type of a tile: float32 on a CPU that multiplies float32 as such, else float64."""
    wide = torch.promote_types(contest.images.dtype, contest.captions.dtype)
    precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    rounds_more = not contest.order and precision not in ("none", "ieee")
    exact = wide is torch.float64 or contest.images.device.type != "cpu" or rounds_more
    return torch.float64 if exact else torch.float32


@dataclass(frozen=True)
class _Block:
    """Consecutive images and their captions."""

    rows: slice
    columns: slice
    best: Tensor  # [image], the highest score of its captions
    matched: Tensor  # [caption], the score of its image


class Square(_Counts):
    """Counts from any scores: the square of blocks grows from its diagonal, so that matched scores are known."""

    def __init__(self, scores: Scores, image_of_caption: Tensor, images: int) -> None:
        super().__init__(image_of_caption, images)
        self.scores, self.blocks = scores, list[_Block]()
        self.nan = torch.zeros((), dtype=torch.bool, device=image_of_caption.device)

    def add(self, rows: slice) -> None:
        """Count the next images and their captions against themselves and all before them."""
        ends = torch.tensor([rows.start, rows.stop], device=self.image_of_caption.device)
        columns = slice(*torch.searchsorted(self.image_of_caption, ends).tolist())
        tile, row = self.scores(rows, columns), self.image_of_caption[columns] - rows.start
        matched = tile[row, torch.arange(len(row), device=tile.device)]
        best = tile.new_full((len(tile),), -torch.inf).scatter_reduce(0, row, matched, "amax")
        block = _Block(rows, columns, best, matched)
        self._count(tile, block, block)
        self.by_image[rows] -= torch.bincount(row[matched >= best[row]], minlength=len(tile))
        self.by_caption[columns] -= 1
        for other in self.blocks:
            self._count(self.scores(other.rows, columns), other, block)
            self._count(self.scores(rows, other.columns), block, other)
        self.blocks.append(block)

    def _count(self, tile: Tensor, images: _Block, captions: _Block) -> None:
        self.nan |= tile.amax().isnan()
        ahead = scratch("ranks", tuple(tile.shape), tile, torch.bool)
        self.by_image[images.rows] += torch.ge(tile, images.best[:, None], out=ahead).sum(1, dtype=torch.int32)
        self.by_caption[captions.columns] += torch.ge(tile, captions.matched, out=ahead).sum(0, dtype=torch.int32)
