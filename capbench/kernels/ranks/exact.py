"""The exact score of a pair, which ranks are counted from, and how far from it the score in a tile may lie.

The terms of an exact score are float64, added in one order: equal rows tie in any tile, with any number of threads, on
any processor. A product of matrices decides where rounding cannot matter, and exact scores decide the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.kernels._blocks import scratch

CPU_ELEMENTS, GPU_ELEMENTS = 2**16, 2**24  # of [pair, dim] at once: 512 KB of terms stay in a processor's cache
SLACK = 64  # roundings besides one for each term: of the exact score, of the order's steps, of a band
Images = Float[Tensor, "image dim"]
Captions = Float[Tensor, "caption dim"]
Pairs = Int[Tensor, " pair"]
Band = tuple[
    Tensor, Tensor
]  # low and high of each image or caption: lower scores are behind, higher ahead, others open


def exact_scores(
    images: Images, captions: Captions, rows: Pairs, columns: Pairs, order: bool = False
) -> Float[Tensor, " pair"]:
    """The dot product of images `rows` and captions `columns`, or for the order -||max(0, c - i)||^2, in float64.

    A root would not give the same bits on every processor, and the square ranks alike. Memory: a block of pairs, and
    the scores.
    """
    scores = torch.empty(len(rows), dtype=torch.float64, device=images.device)
    at_once = max(1, min(len(rows), pairs_at_once(images)))
    terms = scratch("exact scores", (at_once, images.shape[1]), images, torch.float64)
    halves = list(_halves(terms))
    for score, some, others in zip(scores.split(at_once), rows.split(at_once), columns.split(at_once), strict=True):
        caption, image = captions.index_select(0, others), images.index_select(0, some)
        products = terms[: len(some)].copy_(caption)
        if order:
            products.sub_(image).clamp_(min=0).mul_(products)
        else:
            products.mul_(image)
        for first, second in halves:
            first.add_(second)
        score.copy_(products[:, :1].sum(1))
    return scores.neg_() if order else scores


def _halves(terms: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The halves of each row, then of its first half, and so on; added in turn they leave the sum in front.

    Only elementwise additions have the same order everywhere.
    """
    width = terms.shape[1]
    while width > 1:
        half = width // 2
        width -= half
        yield terms[:, :half], terms[:, width : width + half]


def refuse_nan(nan: bool) -> None:
    """Raises CapbenchError where a similarity is NaN."""
    if nan:
        raise CapbenchError("the similarities hold NaN: the model has diverged, or a zero was normalised")


@dataclass(frozen=True, eq=False)
class Contest:
    """Images, captions, and the exact scores that a wrong candidate has to reach."""

    images: Images
    captions: Captions
    image_of_caption: Int[Tensor, " caption"]
    order: bool  # whether the order similarity scores, not the dot product
    best: Float[Tensor, " image"]  # the highest score of its captions
    matched: Float[Tensor, " caption"]  # the score of its image
    lengths: tuple[Tensor, Tensor]  # upper bounds of the norms of the images and of the captions; empty for the order

    @classmethod
    def of(cls, images: Images, captions: Captions, image_of_caption: Tensor, order: bool) -> Contest:
        """Raises CapbenchError when a matched score is NaN, as one is where any embedding is."""
        each = torch.arange(len(captions), device=captions.device)
        matched = exact_scores(images, captions, image_of_caption, each, order)
        refuse_nan(bool(matched.isnan().any()))
        best = matched.new_full((len(images),), -torch.inf).scatter_reduce(0, image_of_caption, matched, "amax")
        empty = matched.new_empty(0)
        lengths = (empty, empty) if order else (_lengths(images), _lengths(captions))
        return cls(images, captions, image_of_caption, order, best, matched, lengths)

    def share(self, rows: slice) -> Contest:
        """The contest of a slice of the images: their ranks, and the part of each caption's that they decide."""
        own, lengths = self.image_of_caption - rows.start, (self.lengths[0][rows], self.lengths[1])
        return replace(self, images=self.images[rows], image_of_caption=own, best=self.best[rows], lengths=lengths)

    def bands(self, dtype: torch.dtype, unit: float, parts: float = 0.0) -> tuple[Band, Band]:
        """Bands of the images and of the captions for tiles of `dtype` whose operations round by at most `unit`.

        A dot product of n terms, summed in any order, is off by at most n `unit` of |image| |caption|, to first order
        (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1); `parts` is the share that a product
        in parts leaves out. The order, a root, is off by half that share of itself. Where a tile may overflow, all is
        open.
        """
        dim, best, matched = self.images.shape[1], self.best, self.matched
        first_order = (SLACK + (dim / 2 if self.order else dim)) * unit
        share = (first_order / (1 - 2 * first_order) if first_order < 0.5 else math.inf) + parts
        if self.order:
            best, matched = (-(1e-12 - score).sqrt() for score in (best, matched))
            sizes, most = (best.abs(), matched.abs()), math.sqrt(torch.finfo(dtype).max) / 2
        else:
            image, caption = self.lengths
            sizes, most = (image * caption.amax(), caption * image.amax()), torch.finfo(dtype).max / 4
        of_image = _band(best, sizes[0] * share, sizes[0] < most, dtype)
        return of_image, _band(matched, sizes[1] * share, sizes[1] < most, dtype)

    def over(self, rows: Pairs, columns: Pairs, repeated: bool = False) -> tuple[Tensor, Tensor]:
        """Whether each pair, [pair], scores as high as the best of its image, and as its caption's own image.

        A matched pair does neither. With `repeated`, equal rows are scored once. Raises CapbenchError for NaN.
        """
        if repeated:
            images, captions = self._alike
            distinct, which = (images[rows] * len(captions) + captions[columns]).unique(return_inverse=True)
            pairs = distinct // len(captions), distinct % len(captions)
            scores = exact_scores(self.images, self.captions, *pairs, self.order)[which]
        else:
            scores = exact_scores(self.images, self.captions, rows, columns, self.order)
        refuse_nan(bool(scores.isnan().any()))
        wrong = self.image_of_caption[columns] != rows
        return wrong & (scores >= self.best[rows]), wrong & (scores >= self.matched[columns])

    @cached_property
    def _alike(self) -> tuple[Tensor, Tensor]:
        """For each image and each caption, one representative of all that equal it."""
        return alike(self.images), alike(self.captions)


def alike(embeddings: Float[Tensor, "row dim"]) -> Int[Tensor, " row"]:
    """For each row one representative of all rows that equal it."""
    distinct, which = embeddings.unique(dim=0, return_inverse=True)
    places = torch.arange(len(embeddings), device=embeddings.device)
    return which.new_zeros(len(distinct)).scatter_(0, which, places)[which]


def _lengths(embeddings: Tensor) -> Tensor:
    """An upper bound of each row's norm, in float64 and above 0, so that a share of it covers underflow."""
    wide, dim = torch.promote_types(embeddings.dtype, torch.float32), embeddings.shape[1]
    blocks = embeddings.split(16 * pairs_at_once(embeddings))
    norms = torch.cat([torch.linalg.vector_norm(block.to(wide), dim=1) for block in blocks]).double()
    unit, tiny = torch.finfo(wide).eps, torch.finfo(wide).tiny
    return norms * (1 + (dim + SLACK) * unit) + math.sqrt(dim * tiny / unit)


def pairs_at_once(embeddings: Tensor) -> int:
    """How many pairs' terms stay in a processor's cache, or fill a GPU."""
    elements = CPU_ELEMENTS if embeddings.device.type == "cpu" else GPU_ELEMENTS
    return max(1, elements // max(1, embeddings.shape[1]))


def _band(score: Tensor, error: Tensor, finite: Tensor, dtype: torch.dtype) -> Band:
    infinity = score.new_tensor(torch.inf, dtype=dtype)
    low = torch.where(finite, score - error, -torch.inf).to(dtype).nextafter(-infinity)
    return low, torch.where(finite, score + error, torch.inf).to(dtype).nextafter(infinity)
