"""At which places of a ranking the positives of a query are, and what is measured from that.

Similarities come as a matrix, from a function, or from embeddings by a named similarity: there a product of matrices
finds the few candidates that matter, and exact scores decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from capbench.kernels.ranks.exact import SLACK, alike, exact_scores, refuse_nan

DEEPEST = 10  # of the recalls
TILE = 2**23  # similarities at once: 32 MB of float32
CROWDED = 2**22  # pairs of a block that are scored exactly, above which equal embeddings are scored once
FAR = 2**40  # the place of a positive that is not found

Lists = Mapping[int, Sequence[int]]


@dataclass(frozen=True, eq=False)
class Places:
    """At which place the positives of some queries are found."""

    count: Int[np.ndarray, " query"]  # how many positives a query has
    query: Int[np.ndarray, " positive"]
    place: Int[np.ndarray, " positive"]  # from 1; exact up to the larger of `count` and 10, beyond it only larger


def measured(places: Places) -> dict[str, Float[np.ndarray, " query"]]:
    """Each measure of each query, in percent."""
    order = np.lexsort((places.place, places.query))
    query, place, count = places.query[order], places.place[order], places.count
    first = np.searchsorted(query, np.arange(len(count)))
    found = 1.0 + np.arange(len(query)) - first[query]  # positives up to and with this one
    inside = place <= count[query]

    def summed(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return 100 * np.bincount(query, values, len(count)) / count

    recalls = {f"r{k}": 100.0 * (place[first] <= k) for k in (1, 5, 10)}
    return {**recalls, "r_precision": summed(inside * 1.0), "map_at_r": summed(inside * found / place)}


class ByMatrix:
    """Similarities that are given: exact as they are."""

    def __init__(self, similarity: Tensor, rows: Tensor, columns: Tensor) -> None:
        self.similarity, self.rows, self.columns = similarity, rows, columns

    def tile(self, queries: Tensor, images: bool) -> Tensor:
        """[query, candidate]: of images with all captions, or of captions with all images."""
        if images:
            return self.similarity[self.rows[queries]][:, self.columns]
        return self.similarity[:, self.columns[queries]][self.rows].T

    def slack(self, scores: Tensor, queries: Tensor, images: bool) -> Tensor:
        """How far the values of a tile may be from the exact ones: those of `queries` that are `scores` high."""
        return torch.zeros_like(scores)

    def exact(self, tile: Tensor, queries: Tensor, row: Tensor, column: Tensor, images: bool) -> Tensor:
        """The exact scores of the pairs `row`, `column` of a tile."""
        return tile[row, column]


class ByFunction(ByMatrix):
    """Similarities that a function computes."""

    def __init__(self, images: Tensor, captions: Tensor, similarity: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.images, self.captions, self.function = images, captions, similarity

    def tile(self, queries: Tensor, images: bool) -> Tensor:
        if images:
            return self.function(self.images[queries], self.captions)
        return self.function(self.images, self.captions[queries]).T


class ByName(ByMatrix):
    """A product of matrices, or the order; where rounding could matter, exact scores decide."""

    def __init__(self, images: Tensor, captions: Tensor, similarity: str) -> None:
        self.images, self.captions, self.order = images, captions, similarity == "order"
        self.norms = {True: torch.linalg.vector_norm(images, dim=1), False: torch.linalg.vector_norm(captions, dim=1)}
        precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
        as_such = images.device.type == "cpu" and precision in ("none", "ieee")
        self.dtype = images.dtype if as_such else torch.float64
        self.alike: tuple[Tensor, Tensor] | None = None

    def tile(self, queries: Tensor, images: bool) -> Tensor:
        some = (self.images if images else self.captions)[queries].to(self.dtype)
        others = (self.captions if images else self.images).to(self.dtype)
        if not self.order:
            return some @ others.T
        sign = 1 if images else -1
        return torch.stack([-torch.linalg.vector_norm((sign * (others - one)).clamp_(min=0), dim=1) for one in some])

    def slack(self, scores: Tensor, queries: Tensor, images: bool) -> Tensor:
        share = 2 * (SLACK + self.images.shape[1]) * torch.finfo(self.dtype).eps
        return share * (scores.abs() if self.order else self.norms[images][queries] * self.norms[not images].amax())

    def exact(self, tile: Tensor, queries: Tensor, row: Tensor, column: Tensor, images: bool) -> Tensor:
        pairs = (queries[row], column) if images else (column, queries[row])
        if len(row) <= CROWDED:
            return exact_scores(self.images, self.captions, *pairs, self.order)
        self.alike = self.alike or (alike(self.images), alike(self.captions))
        codes = self.alike[0][pairs[0]] * len(self.captions) + self.alike[1][pairs[1]]
        distinct, which = codes.unique(return_inverse=True)
        few = distinct // len(self.captions), distinct % len(self.captions)
        return exact_scores(self.images, self.captions, *few, self.order)[which]


def places_of(fitting: Lists, asking: list[int], candidates: list[int], ways: ByMatrix, of_images: bool) -> Places:
    """The places of the positives of those of the ids `asking` that are queries."""
    column_of = {name: column for column, name in enumerate(candidates)}
    asked = [row for row, name in enumerate(asking) if name in fitting]
    columns = [[column_of.get(name, -1) for name in fitting[asking[row]]] for row in asked]
    count = np.array([len(own) for own in columns], np.int64)
    query = np.repeat(np.arange(len(asked)), count)
    column = np.array([each for own in columns for each in own], np.int64)
    place = np.full(len(column), FAR)  # of the positives that are no candidates, as ECCV Caption has two
    at_once = max(1, TILE // len(candidates))
    for start in range(0, len(asked), at_once):
        rows = torch.tensor(asked[start : start + at_once])
        mine = np.flatnonzero((query >= start) & (query < start + len(rows)) & (column >= 0))
        own, of_own = torch.from_numpy(query[mine] - start), torch.from_numpy(column[mine])
        deepest = max(DEEPEST, int(count[start : start + len(rows)].max()))
        place[mine] = _block(ways, rows, own, of_own, deepest, of_images).numpy()
    return Places(count, query, place)


def _block(ways: ByMatrix, queries: Tensor, row: Tensor, column: Tensor, deepest: int, images: bool) -> Tensor:
    """The places of the positives `row`, `column` among all candidates of a block of queries, exact up to `deepest`.

    Only the `deepest` best negatives can decide them, and those that are as good up to rounding.
    """
    tile = ways.tile(queries, images)
    refuse_nan(bool(tile.amax().isnan()))
    best = ways.exact(tile, queries, row, column, images).double()
    wrong = torch.ones_like(tile, dtype=torch.bool).index_put_((row, column), torch.tensor(False))
    negatives = tile.where(wrong, -torch.inf)
    least = negatives.topk(min(deepest, tile.shape[1])).values[:, -1]
    near = negatives >= (least - ways.slack(least, queries, images))[:, None]
    rivals, others = (near & wrong).nonzero(as_tuple=True)
    scores = ways.exact(tile, queries, rivals, others, images).double()
    refuse_nan(bool(scores.isnan().any()) or bool(best.isnan().any()))
    return _counted(row, best, rivals, scores)


def _counted(row: Tensor, best: Tensor, rivals: Tensor, scores: Tensor) -> Tensor:
    """For each positive its place among the positives of its row and those rivals that score as high."""
    of_row = torch.cat([row, rivals])
    positive = torch.cat([torch.ones_like(row), torch.zeros_like(rivals)])
    score = torch.cat([best, scores])
    order = torch.arange(len(score))
    for key in (positive, -score, of_row):  # the last key decides first: row, falling score, rivals before positives
        order = order[key[order].argsort(stable=True)]
    first = torch.searchsorted(of_row[order].contiguous(), of_row[order].contiguous())
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - first + 1
    return place[: len(row)]
