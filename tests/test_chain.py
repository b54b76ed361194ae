"""Viterbi decoding against every path."""

from __future__ import annotations

import pytest
import torch

from capbench.base.errors import CapbenchError
from capbench.kernels._triton import interpreted
from capbench.kernels.chain import cpu, viterbi_decode
from capbench.kernels.chain.reference import energy, reference_viterbi_decode

DEVICE = "cpu" if interpreted() else "cuda"  # of the kernels


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 2.5, 100.0])
@pytest.mark.parametrize("seed", range(4))
def test_no_labelling_is_better(beta, seed):
    random = torch.Generator().manual_seed(seed)
    scores = torch.randn(6, 5, 3, generator=random, dtype=torch.float64)
    lengths = torch.tensor([0, 1, 2, 3, 4, 5])
    labels, energies = viterbi_decode(scores, lengths, beta)
    for chain, length in enumerate(lengths.tolist()):
        assert (labels[chain, length:] == -1).all()
        _, best = reference_viterbi_decode(scores[chain, :length], beta)
        assert float(energies[chain]) == pytest.approx(best)
        assert energy(scores[chain], tuple(labels[chain, :length].tolist()), beta) == pytest.approx(best)


def test_the_energy_of_labels_is_their_scores_and_a_reward_for_equal_neighbours():
    scores = torch.tensor([[1.0, 2.0], [4.0, 8.0], [16.0, 32.0]])
    assert energy(scores, (0, 1, 1), 0.5) == 1 + 8 + 32 + 0.5
    assert reference_viterbi_decode(scores, 0.5) == ((1, 1, 1), 2 + 8 + 32 + 1)


def test_without_affinity_each_word_chooses_alone_and_with_much_all_agree():
    scores = torch.randn(4, 7, 20, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([7, 7, 5, 1])
    alone, _ = viterbi_decode(scores, lengths, 0.0)
    for chain, length in enumerate(lengths.tolist()):
        assert alone[chain, :length].tolist() == scores[chain, :length].argmax(1).tolist()
    together, _ = viterbi_decode(scores, lengths, 1e4)
    for chain, length in enumerate(lengths.tolist()):
        assert together[chain, :length].unique().tolist() == [int(scores[chain, :length].sum(0).argmax())]


def test_ties_go_to_the_lower_label():
    labels, _ = viterbi_decode(torch.zeros(1, 3, 4), torch.tensor([3]), 0.0)
    assert labels.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("beta", "length", "message"), [(-1.0, 2, "beta"), (float("inf"), 2, "beta"), (1.0, 9, "0..3")]
)
def test_bad_arguments_are_named(beta, length, message):
    with pytest.raises(CapbenchError, match=message):
        viterbi_decode(torch.zeros(1, 3, 4), torch.tensor([length]), beta)


def test_nan_is_refused():
    with pytest.raises(CapbenchError, match="NaN"):
        viterbi_decode(torch.full((1, 3, 4), torch.nan), torch.tensor([3]), 1.0)


@pytest.mark.kernel
@pytest.mark.parametrize("beta", [0.0, 0.3, 2.5, 100.0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (6, 5, 3), (4, 7, 20), (3, 4, 33)])
@pytest.mark.parametrize("tied", [False, True])
def test_kernel_gives_the_labels_and_energies_of_the_cpu_program(shape, beta, tied):
    random = torch.Generator().manual_seed(5)
    scores = torch.randn(shape, generator=random)
    scores = scores.round() if tied else scores
    lengths = torch.randint(0, shape[1] + 1, shape[:1], generator=random)
    labels, energies = viterbi_decode(scores.to(DEVICE), lengths, beta)
    expected, energies_there = cpu.viterbi_decode(scores, lengths, beta)
    assert torch.equal(labels.cpu(), expected)
    assert torch.equal(energies.cpu(), energies_there)


@pytest.mark.kernel
def test_kernel_finds_that_no_labelling_is_better():
    scores = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(2))
    labels, energies = viterbi_decode(scores.to(DEVICE), torch.tensor([4, 4, 4]), 0.7)
    for chain in range(3):
        _, best = reference_viterbi_decode(scores[chain], 0.7)
        assert float(energies[chain]) == pytest.approx(best, rel=1e-5)
        assert energy(scores[chain], tuple(labels[chain].tolist()), 0.7) == pytest.approx(best, rel=1e-5)


@pytest.mark.kernel
def test_kernel_refuses_nan_within_a_chain_and_takes_it_beyond():
    scores = torch.zeros(2, 3, 4, device=DEVICE)
    scores[1, 2, 3] = torch.nan
    with pytest.raises(CapbenchError, match="NaN"):
        viterbi_decode(scores, torch.tensor([3, 3]), 1.0)
    assert viterbi_decode(scores, torch.tensor([3, 2]), 1.0)[0].tolist() == [[0, 0, 0], [0, 0, -1]]
    assert viterbi_decode(scores[:0], torch.zeros(0, dtype=torch.int64), 1.0)[0].shape == (0, 3)
