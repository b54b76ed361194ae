"""The best labels of 5,000 chains of 16 words and 20 regions, against a Viterbi algorithm for any transition matrix.

Bytes: the scores read and the labels written once. FLOP: a comparison and two additions for each label at each place.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.bench import COMPILED, DEVICE, Case, Variant, rows
from capbench.kernels.chain import viterbi_decode

CHAINS, PLACES, LABELS, BETA = 5000, 16, 20, 1.0


def ours(scores: Tensor, lengths: Tensor) -> Tensor:
    return viterbi_decode(scores, lengths, BETA)[0]


def plain_viterbi(scores: Tensor, lengths: Tensor) -> Tensor:
    """All pairs of labels at each step, O(labels^2); all chains have the same length."""
    transition = BETA * torch.eye(scores.shape[2], device=scores.device, dtype=scores.dtype)
    best, pointers = scores[:, 0], []
    for place in range(1, scores.shape[1]):
        top, came_from = (best[:, :, None] + transition).max(1)
        best = top + scores[:, place]
        pointers.append(came_from)
    label = best.argmax(1)
    labels = [label]
    for came_from in reversed(pointers):
        label = came_from.gather(1, label[:, None])[:, 0]
        labels.append(label)
    return torch.stack(labels[::-1], 1)


def inputs(chains: int, dtype: torch.dtype, device: torch.device | str) -> tuple[Tensor, ...]:
    scores = torch.randn(chains, PLACES, LABELS, device=device).to(dtype)
    return scores, torch.full((chains,), PLACES, device=device)


CASES = [
    Case(
        operation="chain labels",
        size=f"{CHAINS:,} chains x {PLACES} places x {LABELS} labels",
        numbers={"chains": CHAINS, "places": PLACES, "labels": LABELS},
        dtype=torch.float32, flop=3.0 * CHAINS * PLACES * LABELS,
        bytes=4.0 * CHAINS * PLACES * LABELS + 8.0 * CHAINS * (PLACES + 1),
        variants={
            "ours": Variant(ours, ours=True),
            "Viterbi over all pairs of labels": Variant(plain_viterbi),
            f"{COMPILED} of that": Variant(plain_viterbi),
        },
        inputs=partial(inputs, CHAINS, torch.float32, DEVICE), small=partial(inputs, 40, torch.float64, "cpu"),
        reference=plain_viterbi,
    )
]  # fmt: skip


@rows(CASES)
def test_chain(show, case: Case, variant: str) -> None:
    show(case, variant)
