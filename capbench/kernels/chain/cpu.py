"""Viterbi decoding place by place, for all chains at once."""

from __future__ import annotations

import torch
from torch import Tensor


def viterbi_decode(scores: Tensor, lengths: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """`capbench.kernels.chain.viterbi_decode`, unchecked, on any device."""
    chains, places, labels = scores.shape
    best = scores.new_zeros(chains, labels)  # of all paths that end in each label at the place before
    came_from = []
    for place in range(places):
        top, at = _first_best(best)
        stay = best + beta
        leave = top[:, None] > stay
        came_from.append(torch.where(leave, at[:, None], torch.arange(labels, device=scores.device)))
        ahead = torch.where(leave, top[:, None], stay) if place else best
        best = torch.where((lengths > place)[:, None], ahead + scores[:, place], best)
    energy, label = _first_best(best)
    path = torch.full((chains, places), -1, dtype=torch.int64, device=scores.device)
    for place in range(places - 1, -1, -1):
        inside = lengths > place
        path[:, place] = torch.where(inside, label, -1)
        before = came_from[place].gather(1, label[:, None])[:, 0]
        label = torch.where(inside, before, label)
    return path, torch.where(lengths > 0, energy, 0.0)


def _first_best(values: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of each row, and its first position."""
    top = values.amax(1)
    return top, (values == top[:, None]).int().argmax(1)
