"""The prefix tree against torch's packed sequences, in float64, forward and every gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from capbench.kernels.gru import cpu as module
from capbench.kernels.gru import last_hidden
from capbench.kernels.gru.cpu import PrefixTree, _times, _TreeGRU, prefix_tree_last_hidden
from capbench.kernels.gru.reference import reference_last_hidden

captions_of_small_words = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=8)


def padded(captions):
    lengths = torch.tensor([len(caption) for caption in captions])
    ids = torch.zeros(len(captions), int(lengths.max()), dtype=torch.long)
    for row, caption in zip(ids, captions, strict=True):
        row[: len(caption)] = torch.tensor(caption)
    return ids, lengths


def outputs_and_gradients(function, gru, embedding, captions, weight):
    parameters = [*embedding.parameters(), *gru.parameters()]
    hidden = function(gru, embedding, *padded(captions))
    return [hidden, *torch.autograd.grad((hidden * weight).sum(), parameters)]


def assert_equal_to_reference(captions, weight, dtype=torch.float64, hidden=5, tolerance=1e-12):
    torch.manual_seed(0)
    embedding, gru = nn.Embedding(9, 4, dtype=dtype), nn.GRU(4, hidden, batch_first=True, dtype=dtype)
    ours = outputs_and_gradients(prefix_tree_last_hidden, gru, embedding, captions, weight)
    theirs = outputs_and_gradients(reference_last_hidden, gru, embedding, captions, weight)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=60)
@given(captions_of_small_words, st.integers(0, 2**31), st.floats(0, 1))
def test_tree_equals_packed_sequences_for_shared_prefixes_and_silent_captions(captions, seed, silent):
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(len(captions), 5, generator=random, dtype=torch.float64)
    weight[torch.rand(len(captions), generator=random) < silent] = 0
    assert_equal_to_reference(captions, weight)


@pytest.mark.parametrize("hidden", [1, 64, 129])
def test_tree_equals_packed_sequences_in_single_precision(hidden):
    random = torch.Generator().manual_seed(hidden)
    captions = [torch.randint(0, 9, (n,), generator=random).tolist() for n in (1, 2, 7, 7, 12, 30)]
    weight = torch.randn(len(captions), hidden, generator=random)
    assert_equal_to_reference(captions, weight, torch.float32, hidden, tolerance=2e-5)


def test_a_word_beyond_the_length_of_a_caption_has_no_effect():
    torch.manual_seed(0)
    embedding, gru = nn.Embedding(9, 4), nn.GRU(4, 5, batch_first=True)
    lengths = torch.tensor([2, 3])
    one = last_hidden(gru, embedding, torch.tensor([[1, 2, 0, 0], [1, 2, 3, 0]]), lengths)
    other = last_hidden(gru, embedding, torch.tensor([[1, 2, 8, 7], [1, 2, 3, 6]]), lengths)
    assert torch.equal(one, other)


def test_gradients_pass_gradcheck():
    torch.manual_seed(0)
    captions, lengths = padded([[1, 2, 3], [1, 2], [1, 4, 3, 2], [1, 2, 3]])
    tree = PrefixTree.of(captions.numpy(), lengths.numpy())
    shapes = (len(tree.vocabulary), 12), (12, 4), (12,)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda *tensors: _TreeGRU.apply(*tensors, tree), inputs)


def test_the_tree_holds_each_prefix_once():
    captions, lengths = padded([[1, 2, 3], [1, 2, 4], [1, 2], [5, 2, 3], [1, 2, 3]])
    tree = PrefixTree.of(captions.numpy(), lengths.numpy())
    assert np.diff(tree.bounds).tolist() == [2, 2, 3]  # 1 5 | 1-2 5-2 | 1-2-3 1-2-4 5-2-3
    assert tree.last[0] == tree.last[4]
    assert len(set(tree.last[[0, 1, 2, 3]])) == 4


def test_the_same_bits_come_out_twice():
    torch.manual_seed(0)
    embedding, gru = nn.Embedding(50, 32), nn.GRU(32, 64, batch_first=True)
    captions = torch.randint(0, 50, (40, 9)).tolist()
    weight = torch.randn(40, 64)
    first = outputs_and_gradients(prefix_tree_last_hidden, gru, embedding, captions, weight)
    second = outputs_and_gradients(prefix_tree_last_hidden, gru, embedding, captions, weight)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_bf16_autocast_stays_close_to_single_precision():
    torch.manual_seed(0)
    embedding, gru = nn.Embedding(50, 32), nn.GRU(32, 64, batch_first=True)
    captions, lengths = padded(torch.randint(0, 50, (20, 9)).tolist())
    with torch.autocast("cpu", torch.bfloat16):
        half = prefix_tree_last_hidden(gru, embedding, captions, lengths)
    full = reference_last_hidden(gru, embedding, captions, lengths)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=1e-2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_large_weight_is_multiplied_in_every_type_packed_or_not(dtype, monkeypatch):
    """oneDNN refuses to pack half precision on some processors, and float16 on all."""
    monkeypatch.setattr(module, "PACK_FROM", 1)
    x, weight = torch.randn(6, 64), torch.randn(96, 64)
    torch.testing.assert_close(
        _times(weight, dtype)(x), x @ weight.t(), atol=0.3 if dtype.itemsize == 2 else 1e-4, rtol=0
    )


def test_the_backward_pass_has_the_type_of_the_forward_pass():
    """A training loop leaves autocast before it calls backward."""
    torch.manual_seed(0)
    embedding, gru = nn.Embedding(50, 32), nn.GRU(32, 64, batch_first=True)
    captions, lengths = padded(torch.randint(0, 50, (20, 9)).tolist())
    weight, parameters = torch.randn(20, 64), [*embedding.parameters(), *gru.parameters()]

    def gradients(encode, forward, backward):
        with torch.autocast("cpu", torch.bfloat16, enabled=forward):
            hidden = encode(gru, embedding, captions, lengths)
        with torch.autocast("cpu", torch.bfloat16, enabled=backward):
            return torch.autograd.grad(hidden, parameters, weight)

    half = gradients(prefix_tree_last_hidden, True, False)
    within = gradients(prefix_tree_last_hidden, True, True)
    assert all(torch.equal(one, other) for one, other in zip(half, within, strict=True))
    full = gradients(reference_last_hidden, False, False)
    for one, other in zip(half, full, strict=True):
        error = float((one - other).norm() / other.norm())
        assert 1e-4 < error < 2e-2
