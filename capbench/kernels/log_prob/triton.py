"""Log probabilities of target words in Triton: a program for a row forward, for a block of a row backward."""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from capbench.kernels._triton import on_device_of

# ruff: noqa: N803 - compile-time constants are capitals

WIDEST = 4096  # words at once


def forward(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """log p of each target [word], and log sum_w exp(x_w) [word], of contiguous scores [word, vocabulary]."""
    words, vocabulary = scores.shape
    log_probs, log_sum = (torch.empty(words, device=scores.device) for _ in range(2))
    if words:
        width = min(WIDEST, triton.next_power_of_2(vocabulary))
        with on_device_of(scores):
            _forward[(words,)](scores, target.contiguous(), log_probs, log_sum, vocabulary, width, num_warps=8)
    return log_probs, log_sum


def backward(scores: Tensor, target: Tensor, log_sum: Tensor, gradient: Tensor, result: Tensor) -> None:
    """The gradient of the scores into `result`, which may be the scores."""
    words, vocabulary = scores.shape
    if words:
        width = min(WIDEST, triton.next_power_of_2(vocabulary))
        arguments = scores, target.contiguous(), log_sum, gradient.contiguous(), result, vocabulary, width
        _backward[words, triton.cdiv(vocabulary, width)](*arguments, num_warps=8)
    torch.autograd.graph.increment_version(result)  # which autograd does not see the kernel write to


@triton.jit
@no_type_check
def _forward(
    scores, target,  # [word, vocabulary], [word] int64
    log_probs, log_sum,  # [word] float32, out
    vocabulary, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    scores += row * vocabulary
    place = tl.arange(0, WIDTH)
    best = tl.full((WIDTH,), float("-inf"), tl.float32)
    for start in range(0, vocabulary, WIDTH):
        x = tl.load(scores + start + place, mask=start + place < vocabulary, other=float("-inf"))
        best = tl.maximum(best, x.to(tl.float32))
    most = tl.max(best, 0)
    total = tl.zeros((WIDTH,), tl.float32)
    for start in range(0, vocabulary, WIDTH):
        x = tl.load(scores + start + place, mask=start + place < vocabulary, other=float("-inf"))
        total += tl.exp(x.to(tl.float32) - most)
    log_total = most + tl.log(tl.sum(total, 0))
    score = tl.load(scores + tl.load(target + row)).to(tl.float32)
    tl.store(log_sum + row, log_total)
    tl.store(log_probs + row, score - log_total)


@triton.jit
@no_type_check
def _backward(
    scores, target,  # [word, vocabulary], [word] int64
    log_sum, gradient,  # [word] float32; of the log probabilities
    result,  # [word, vocabulary], out; may be `scores`
    vocabulary, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    there = place < vocabulary
    at = row * vocabulary + place
    p = tl.exp(tl.load(scores + at, mask=there, other=0.0).to(tl.float32) - tl.load(log_sum + row))
    is_target = (place == tl.load(target + row)).to(tl.float32)
    tl.store(result + at, (is_target - p) * tl.load(gradient + row), mask=there)
