"""The best labels of a chain against every labelling there is."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch

from capbench.errors import CapbenchError
from capbench.kernels.chain import chain_labels


def energy(scores: torch.Tensor, labels: tuple[int, ...], beta: float) -> float:
    own = sum(float(scores[place, label]) for place, label in enumerate(labels))
    return own + beta * sum(a == b for a, b in pairwise(labels))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 2.5, 100.0])
@pytest.mark.parametrize("seed", range(4))
def test_no_labelling_is_better(beta, seed):
    random = torch.Generator().manual_seed(seed)
    scores = torch.randn(6, 5, 3, generator=random, dtype=torch.float64)
    lengths = torch.tensor([0, 1, 2, 3, 4, 5])
    labels, energies = chain_labels(scores, lengths, beta)
    for chain, length in enumerate(lengths.tolist()):
        assert (labels[chain, length:] == -1).all()
        ways = [energy(scores[chain], way, beta) for way in product(range(3), repeat=length)]
        assert float(energies[chain]) == pytest.approx(max(ways))
        found = tuple(labels[chain, :length].tolist())
        assert energy(scores[chain], found, beta) == pytest.approx(max(ways))


def test_without_affinity_each_word_chooses_alone_and_with_much_all_agree():
    scores = torch.randn(4, 7, 20, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([7, 7, 5, 1])
    alone, _ = chain_labels(scores, lengths, 0.0)
    for chain, length in enumerate(lengths.tolist()):
        assert alone[chain, :length].tolist() == scores[chain, :length].argmax(1).tolist()
    together, _ = chain_labels(scores, lengths, 1e4)
    for chain, length in enumerate(lengths.tolist()):
        assert together[chain, :length].unique().tolist() == [int(scores[chain, :length].sum(0).argmax())]


def test_equals_go_to_the_lower_label():
    labels, _ = chain_labels(torch.zeros(1, 3, 4), torch.tensor([3]), 0.0)
    assert labels.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("beta", "length", "message"), [(-1.0, 2, "beta"), (float("inf"), 2, "beta"), (1.0, 9, "0..3")]
)
def test_bad_arguments_are_named(beta, length, message):
    with pytest.raises(CapbenchError, match=message):
        chain_labels(torch.zeros(1, 3, 4), torch.tensor([length]), beta)


def test_nan_is_refused():
    with pytest.raises(CapbenchError, match="NaN"):
        chain_labels(torch.full((1, 3, 4), torch.nan), torch.tensor([3]), 1.0)
