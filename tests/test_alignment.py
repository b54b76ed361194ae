"""Alignment metrics against examples worked out by hand, and a count over pixels."""

from __future__ import annotations

import numpy as np
import pytest

from capbench.base.errors import CapbenchError
from capbench.data.captions import Box, Phrase
from capbench.data.scenes import scenes
from capbench.metrics.alignment import f1, hits, locations_inside, overlaps, snippet_counts

# The whole image of 8 x 8, a thing, its left half, a box that shares half of its union, and one elsewhere.
BOXES = np.array([[0, 0, 8, 8], [0, 0, 2, 2], [0, 0, 1, 2], [0, 0, 2, 4], [6, 6, 8, 8]], np.float32)
THING: Box = (0.0, 0.0, 2.0, 2.0)
CORNER: Box = (6.0, 6.0, 8.0, 8.0)


def test_a_region_points_where_its_centre_lies():
    assert hits(BOXES, [THING]).tolist() == [False, True, True, False, False]  # (1, 2) is on the lower edge: outside
    assert hits(BOXES, [THING, CORNER]).tolist() == [False, True, True, False, True]
    assert hits(BOXES, [(4.0, 4.0, 5.0, 5.0)]).tolist() == [True, False, False, False, False]


def test_a_region_overlaps_from_half_of_the_union_on():
    assert overlaps(BOXES, [THING]).tolist() == [False, True, True, True, False]
    assert overlaps(BOXES, [THING], 0.51).tolist() == [False, True, False, False, False]
    assert overlaps(BOXES, [THING, CORNER]).tolist() == [False, True, True, True, True]
    flat = np.array([[0, 0, 0, 0], [1, 1, 1, 2]], np.float32)
    assert not overlaps(flat, [THING, (1.0, 1.0, 1.0, 1.0)], 0.0).any()


def test_overlap_is_that_of_counted_pixels():
    random = np.random.default_rng(0)
    corners = np.sort(random.integers(0, 9, (60, 2, 2)), axis=1).reshape(60, 4).astype(np.float64)
    corners = corners[(corners[:, 0] < corners[:, 2]) & (corners[:, 1] < corners[:, 3])]
    y, x = np.mgrid[:9, :9]
    pixels = [(x >= a) & (x < c) & (y >= b) & (y < d) for a, b, c, d in corners]
    for (x0, y0, x1, y1), ours in zip(corners.tolist(), pixels, strict=True):
        expected = [2 * (ours & other).sum() >= (ours | other).sum() for other in pixels]
        assert overlaps(corners, [(x0, y0, x1, y1)]).tolist() == expected


def test_without_a_true_box_nothing_is_hit():
    assert not hits(BOXES, []).any()
    assert not overlaps(BOXES, []).any()
    assert locations_inside([], 4, 8).tolist() == [False] * 4


def test_counts_of_a_caption_worked_by_hand():
    """ "a star sits above a disc": the star is in THING, the disc in CORNER."""
    phrases = [Phrase(0, 2, (THING,)), Phrase(4, 6, (CORNER,))]
    right = np.array([1, 1, 0, 0, 4, 4])
    assert snippet_counts(right, BOXES, phrases).tolist() == [4, 4, 4]
    # "a" at the whole image, "star sits" at a box that overlaps the star, "above" at the disc, which itself is missed
    assert snippet_counts(np.array([0, 3, 3, 4, 0, 0]), BOXES, phrases).tolist() == [1, 3, 4]
    assert snippet_counts(right[::-1].copy(), BOXES, phrases).tolist() == [0, 4, 4]
    assert snippet_counts(np.array([1, 1, -1, -1, -1, -1]), BOXES, phrases).tolist() == [2, 2, 4]


def test_phrases_with_the_same_boxes_are_one_thing_and_a_word_counts_for_each_thing():
    """ "two shapes, a star and a star": both boxes in either order, then THING twice."""
    both = Phrase(0, 2, (THING, CORNER))
    again = Phrase(3, 5, (THING,)), Phrase(6, 8, (THING,))
    labels = np.array([1, 4, 0, 1, 0, 0, 1, 0])
    # both: words 0, 1 are true, words 0, 1, 3, 6 are predicted; THING: 3, 4, 6, 7 are true, 0, 3, 6 are predicted
    assert snippet_counts(labels, BOXES, [both, *again]).tolist() == [2 + 2, 4 + 3, 2 + 4]
    turned = Phrase(0, 2, (CORNER, THING))
    assert snippet_counts(labels, BOXES, [both, turned]).tolist() == [2, 4, 2]


def test_f1_of_summed_counts():
    assert f1(np.array([4, 4, 4])) == 100.0
    assert f1(np.array([1, 3, 4])) == pytest.approx(100 * 2 * (1 / 3) * (1 / 4) / (1 / 3 + 1 / 4))
    assert f1(np.array([0, 0, 5])) == 0.0


def test_the_boxes_of_the_scenes_themselves_find_every_phrase():
    data = scenes(seed=5, train=20, val=0, test=0)
    assert data.phrases is not None
    total = np.zeros(3, np.int64)
    for tokens, phrases in zip(data.tokens, data.phrases, strict=True):
        for phrase in phrases:
            labels = np.full(len(tokens), -1)
            labels[phrase.start : phrase.end] = 0
            total += snippet_counts(labels, np.array(phrase.boxes[:1]), [phrase])
    assert f1(total) == 100.0


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(CapbenchError, match="ends at word 3"):
        snippet_counts(np.array([0, 0]), BOXES, [Phrase(1, 3, (THING,))])
    with pytest.raises(CapbenchError, match="nothing"):
        f1(np.array([0, 0, 0]))
