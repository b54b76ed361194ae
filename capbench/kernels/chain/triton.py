"""Viterbi decoding in Triton: one launch, a program a chain, all labels of a place in registers."""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from capbench.kernels._triton import on_device_of

# ruff: noqa: N803 - compile-time constants are capitals


def viterbi_decode(scores: Tensor, lengths: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Labels [chain, place] and energies [chain] of float32 `scores` [chain, place, label]; NaN gives NaN."""
    chains, places, labels = scores.shape
    path = torch.empty(chains, places, dtype=torch.int64, device=scores.device)
    energies = scores.new_empty(chains)
    if not chains:
        return path, energies
    came_from = torch.empty(scores.shape, dtype=torch.int32, device=scores.device)
    width = triton.next_power_of_2(labels)
    arguments = scores.contiguous(), lengths.contiguous(), came_from, path, energies, float(beta), places, labels
    with on_device_of(scores):
        _viterbi[(chains,)](*arguments, LABELS=width, num_warps=min(8, max(1, width // 128)))
    return path, energies


@triton.jit
@no_type_check
def _viterbi(
    scores, lengths,  # [chain, place, label] float32, [chain] int64
    came_from,  # [chain, place, label] int32, scratch: the label before, on the best path to each label
    path, energies,  # out: [chain, place] int64, [chain] float32
    beta, places, labels, LABELS: tl.constexpr,
):  # fmt: skip
    chain = tl.program_id(0).to(tl.int64)
    label = tl.arange(0, LABELS)
    real = label < labels
    scores += chain * places * labels
    came_from += chain * places * labels
    path += chain * places
    length = tl.load(lengths + chain).to(tl.int32)
    best = tl.where(real, tl.zeros([LABELS], tl.float32), float("-inf"))
    spoilt = tl.zeros([LABELS], tl.int32)
    for place in range(length):
        score = tl.load(scores + place * labels + label, mask=real, other=0.0)
        spoilt = spoilt | (score != score).to(tl.int32)
        if place > 0:
            top = tl.max(best, 0)
            at = tl.minimum(tl.argmax(best, 0), labels - 1)  # NaN, too, gives a label that exists
            stay = best + beta
            leave = top > stay
            tl.store(came_from + place * labels + label, tl.where(leave, at, label), mask=real)
            best = tl.where(leave, top, stay)
        best = tl.where(real, best + score, float("-inf"))
    energy = tl.where(tl.max(spoilt, 0) > 0, float("nan"), tl.max(best, 0))
    tl.store(energies + chain, tl.where(length > 0, energy, 0.0))
    tl.debug_barrier()  # what one thread stored, another reads
    chosen = tl.minimum(tl.argmax(best, 0), labels - 1)
    for back in range(length):
        place = length - 1 - back
        tl.store(path + place, chosen)
        if place > 0:
            chosen = tl.load(came_from + place * labels + chosen)
    for place in range(length, places):
        tl.store(path + place, -1)
