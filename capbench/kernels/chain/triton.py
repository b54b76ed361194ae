"""The best labels of a chain in Triton: one launch, one program a chain, its labels side by side in registers."""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

# ruff: noqa: N803 - what a kernel is compiled for stands in capitals


def viterbi(scores: Tensor, lengths: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Labels [chain, place] and energies [chain] of float32 `scores` [chain, place, label]; NaN gives NaN."""
    chains, places, labels = scores.shape
    found = torch.empty(chains, places, dtype=torch.int64, device=scores.device)
    energies = scores.new_empty(chains)
    if not chains:
        return found, energies
    came_from = torch.empty(scores.shape, dtype=torch.int32, device=scores.device)
    width = triton.next_power_of_2(labels)
    warps = min(8, max(1, width // 128))
    _viterbi[(chains,)](
        scores.contiguous(), lengths.contiguous(), came_from, found, energies, float(beta), places, labels,
        LABELS=width, num_warps=warps,
    )  # fmt: skip
    return found, energies


@triton.jit
@no_type_check
def _viterbi(scores, lengths, came_from, found, energies, beta, places, labels, LABELS: tl.constexpr):
    """Forward with the best way to each label in registers and where it came from in memory, then back along it."""
    chain = tl.program_id(0).to(tl.int64)
    label = tl.arange(0, LABELS)
    real = label < labels
    scores += chain * places * labels
    came_from += chain * places * labels
    found += chain * places
    length = tl.load(lengths + chain).to(tl.int32)
    best = tl.where(real, tl.zeros([LABELS], tl.float32), float("-inf"))
    spoilt = tl.zeros([LABELS], tl.int32)
    for place in range(length):
        own = tl.load(scores + place * labels + label, mask=real, other=0.0)
        spoilt = spoilt | (own != own).to(tl.int32)
        if place > 0:
            top = tl.max(best, 0)
            at = tl.minimum(tl.argmax(best, 0), labels - 1)  # of NaN, too, a label that exists
            stay = best + beta
            leave = top > stay
            tl.store(came_from + place * labels + label, tl.where(leave, at, label), mask=real)
            best = tl.where(leave, top, stay)
        best = tl.where(real, best + own, float("-inf"))
    energy = tl.where(tl.max(spoilt, 0) > 0, float("nan"), tl.max(best, 0))
    tl.store(energies + chain, tl.where(length > 0, energy, 0.0))
    tl.debug_barrier()  # what one thread stored, another reads
    chosen = tl.minimum(tl.argmax(best, 0), labels - 1)
    for back in range(length):
        place = length - 1 - back
        tl.store(found + place, chosen)
        if place > 0:
            chosen = tl.load(came_from + place * labels + chosen)
    for place in range(length, places):
        tl.store(found + place, -1)
