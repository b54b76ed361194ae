"""Batches are a pure function of the seed and the epoch, and miss no caption."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capbench.data.batches import length_grouped, padded, shuffled
from capbench.data.vocabulary import PAD

LENGTHS = np.random.default_rng(0).integers(3, 20, 1000)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=80), st.integers(1, 20), st.integers(0, 9), st.integers(0, 9))
def test_every_caption_comes_once_an_epoch(lengths, size, seed, epoch):
    batches = length_grouped(np.array(lengths), size, seed, epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    whole = [len(batch) for batch in batches if len(batch) != size]
    assert len(whole) <= 1
    assert len(batches) == 1 or all(1 < len(batch) <= size + 1 for batch in batches) or size == 1


def test_no_caption_is_alone_in_a_batch():
    for batches in (length_grouped(np.full(101, 5), 25, 0, 0), shuffled(101, 25, 0, 0)):
        assert sorted(map(len, batches)) == [25, 25, 25, 26]
        assert sorted(np.concatenate(batches)) == list(range(101))


def test_shuffled_batches_hold_every_caption_once_and_differ_by_epoch():
    first, other = shuffled(90, 32, 1, 0), shuffled(90, 32, 1, 1)
    assert [len(batch) for batch in first] == [32, 32, 26]
    assert sorted(np.concatenate(first)) == list(range(90))
    assert not np.array_equal(np.concatenate(first), np.concatenate(other))


def test_the_same_seed_and_epoch_give_the_same_batches_and_others_do_not():
    first, again = length_grouped(LENGTHS, 32, 1, 2), length_grouped(LENGTHS, 32, 1, 2)
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    for seed, epoch in ((1, 3), (2, 2)):
        assert not np.array_equal(np.concatenate(first), np.concatenate(length_grouped(LENGTHS, 32, seed, epoch)))


def test_a_batch_holds_captions_of_nearly_one_length_in_random_order():
    batches = length_grouped(LENGTHS, 32, 0, 0)
    spread = [np.ptp(LENGTHS[batch]) for batch in batches]
    assert max(spread) <= 1
    assert np.ptp(LENGTHS) > 10
    means = [LENGTHS[batch].mean() for batch in batches]
    assert means != sorted(means)


@pytest.mark.parametrize("captions", [[[5]], [[1, 2, 3], [4], [5, 6]]])
def test_padding_goes_to_the_end(captions):
    ids, lengths = padded(captions)
    assert lengths.tolist() == [len(caption) for caption in captions]
    for row, caption in zip(ids.tolist(), captions, strict=True):
        assert row == caption + [PAD] * (len(row) - len(caption))
