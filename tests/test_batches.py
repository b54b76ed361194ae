"""Batches are a pure function of the seed and the epoch, and miss no caption."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capbench.data.batches import length_grouped, padded
from capbench.data.vocabulary import PAD

LENGTHS = np.random.default_rng(0).integers(3, 20, 1000)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=80), st.integers(1, 20), st.integers(0, 9), st.integers(0, 9))
def test_every_caption_comes_once_an_epoch(lengths, size, seed, epoch):
    batches = length_grouped(np.array(lengths), size, seed, epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert sorted(map(len, batches), reverse=True)[:-1] == [size] * (len(batches) - 1)


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
