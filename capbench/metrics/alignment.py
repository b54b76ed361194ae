"""Whether attention, or an alignment, lands on the thing that a phrase names; only where the true boxes are known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from jaxtyping import Bool, Float, Int

from capbench.base.errors import CapbenchError
from capbench.data.captions import Box, Phrase

BETAS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # affinities of neighbouring words for which snippets are scored


def locations_inside(boxes: Sequence[Box], locations: int, size: int) -> Bool[np.ndarray, " location"]:
    """Which cells of a square grid over an image of `size` pixels have their centre in one of the boxes.

    Cells go along rows, as the annotations of an encoder do. Raises CapbenchError when the grid is not square.
    """
    side = math.isqrt(locations)
    if side * side != locations:
        raise CapbenchError(f"{locations} locations are no square grid, so where they lie is not known")
    centre = (np.arange(side) + 0.5) * size / side
    y, x = np.meshgrid(centre, centre, indexing="ij")
    return _inside(x.ravel(), y.ravel(), boxes)


def hits(boxes: Float[np.ndarray, "region 4"], truth: Sequence[Box]) -> Bool[np.ndarray, " region"]:
    """Which regions have their centre in one of the true boxes: the pointing game for regions.

    All boxes are x0, y0, x1, y1 in the same unit. Source: Zhang et al., ECCV 2016, section 4.2.
    """
    x0, y0, x1, y1 = boxes.T
    return _inside((x0 + x1) / 2, (y0 + y1) / 2, truth)


def overlaps(
    boxes: Float[np.ndarray, "region 4"], truth: Sequence[Box], least: float = 0.5
) -> Bool[np.ndarray, " region"]:
    """Which regions share at least `least` of their union with one of the true boxes (PASCAL VOC's criterion).

    All boxes are x0, y0, x1, y1 in the same unit. A region without an area overlaps nothing.
    """
    a, b = boxes[:, None].astype(np.float64), np.reshape(truth, (-1, 4))
    sides = np.minimum(a[..., 2:], b[:, 2:]) - np.maximum(a[..., :2], b[:, :2])
    shared = sides.clip(0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[:, 2:] - b[:, :2]).prod(-1) - shared
    return ((shared > 0) & (shared >= least * union)).any(1)


def pointing(
    weights: Float[np.ndarray, "phrase location"], inside: Bool[np.ndarray, "phrase location"]
) -> tuple[Float[np.ndarray, " phrase"], Float[np.ndarray, " phrase"]]:
    """100 where the heaviest location of a phrase lies inside, else 0; and the chance of it in percent.

    Chance is the share of locations that lie inside. All of several heaviest must be inside, so constant weights hit
    only where every location is. Source: Zhang et al., ECCV 2016, section 4.2 (pointing game).
    """
    heaviest = weights == weights.max(1, keepdims=True)
    return 100.0 * ~(heaviest & ~inside).any(1), 100.0 * inside.mean(1)


def label_spans(labels: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(label, start, end) of the longest stretches of one label, in their order; `end` is exclusive."""
    for label, places in groupby(range(len(labels)), key=labels.__getitem__):
        first, *rest = places
        yield label, first, first + len(rest) + 1


def snippet_counts(
    labels: Int[np.ndarray, " word"], boxes: Float[np.ndarray, "region 4"], phrases: Sequence[Phrase]
) -> Int[np.ndarray, " 3"]:
    """True positives, words predicted and words in truth of one caption; add them over captions for a micro F1.

    Phrases with the same boxes name one thing. Its true words are those of its phrases; its predicted words, those
    whose region overlaps one of its boxes by half (IoU). A word counts once for each thing. `labels` are the regions of
    the words, -1 for none; `boxes` are in the unit of the phrases' boxes.
    Raises CapbenchError for a phrase beyond the words.
    """
    counts = np.zeros(3, np.int64)
    truth: dict[frozenset[Box], np.ndarray] = {}
    for phrase in phrases:
        if phrase.end > len(labels):
            raise CapbenchError(f"a phrase ends at word {phrase.end} and the caption has {len(labels)} labels")
        words = truth.setdefault(frozenset(phrase.boxes), np.zeros(len(labels), np.bool_))
        words[phrase.start : phrase.end] = True
    for thing, said in truth.items():
        predicted = (labels >= 0) & overlaps(boxes, sorted(thing))[labels]
        counts += (predicted & said).sum(), predicted.sum(), said.sum()
    return counts


def f1(counts: Int[np.ndarray, " 3"]) -> float:
    """F1 in percent from true positives, predicted and true. Raises CapbenchError when nothing is true."""
    hit, predicted, true = counts.tolist()
    if not true:
        raise CapbenchError("no caption has a phrase with a box, so there is nothing for an alignment to find")
    return 200.0 * hit / (predicted + true)


def _inside(
    x: Float[np.ndarray, " point"], y: Float[np.ndarray, " point"], boxes: Sequence[Box]
) -> Bool[np.ndarray, " point"]:
    """Which points lie in one of the boxes, the right and lower edges outside."""
    x0, y0, x1, y1 = np.reshape(boxes, (-1, 4)).T[..., None]
    return ((x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)).any(0)
