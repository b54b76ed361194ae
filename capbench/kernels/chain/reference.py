"""The best labels of a chain by trying all of them."""

from __future__ import annotations

from itertools import pairwise, product

from jaxtyping import Float
from torch import Tensor


def energy(scores: Float[Tensor, "place label"], labels: tuple[int, ...], beta: float) -> float:
    """E(a) = sum_j score[j, a_j] + beta sum_j [a_j = a_{j+1}]."""
    total = sum(float(scores[place, label]) for place, label in enumerate(labels))
    return total + beta * sum(a == b for a, b in pairwise(labels))


def reference_viterbi_decode(scores: Float[Tensor, "place label"], beta: float) -> tuple[tuple[int, ...], float]:
    """The labels of highest energy, and that energy, of one chain."""
    places, labels = scores.shape
    paths = product(range(labels), repeat=places)
    return max(((path, energy(scores, path, beta)) for path in paths), key=lambda pair: pair[1])
