"""The log probability of one word in each row of scores, which is what cross entropy and likelihood are made of.

log p(t) = x_t - log sum_w exp(x_w), with the gradient (1[w = t] - p_w) by x_w. Neither the log probabilities nor the
probabilities of a whole vocabulary are kept: the backward pass makes the gradient from the scores and writes it over
them. On a CPU some rows at a time lie in the cache; on a GPU Triton reads the scores once a pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from capbench.kernels._triton import runs_triton
from capbench.kernels.log_prob.reference import wide

ELEMENTS_AT_ONCE = 2**19  # 2 MiB in float32


def target_log_probs(scores: Float[Tensor, "word vocabulary"], target: Int[Tensor, " word"]) -> Float[Tensor, " word"]:
    """log p of each row's target, in float32 (float64 for float64 scores), whatever autocast says.

    **The backward pass overwrites `scores` with their gradient**, and so whatever shares their memory, unless they are
    a leaf; autograd raises where another operation still needs them. The targets must lie in the vocabulary, which is
    not checked on a GPU. Deterministic.
    """
    log_probs: Tensor = _TargetLogProbs.apply(scores, target)
    return log_probs


class _TargetLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, target: Tensor) -> Tensor:
        owner = scores._base if scores._is_view() else scores
        ctx.kept = owner is None or owner.is_leaf
        scores = scores.contiguous()
        if runs_triton(scores):
            from capbench.kernels.log_prob import triton as log_prob_triton

            log_probs, log_sum = log_prob_triton.forward(scores, target)
            ctx.save_for_backward(scores, target, log_sum)
            return log_probs
        log_probs = scores.new_empty(len(scores), dtype=wide(scores))
        for part in _parts(scores):
            log_p = scores[part].to(log_probs.dtype).log_softmax(1)
            log_probs[part] = log_p.gather(1, target[part, None])[:, 0]
        ctx.save_for_backward(scores, target)
        return log_probs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scores, target, *by_triton = ctx.saved_tensors
        result = torch.empty_like(scores) if ctx.kept else scores
        if by_triton:
            from capbench.kernels.log_prob import triton as log_prob_triton

            log_prob_triton.backward(scores, target, by_triton[0], gradient, result)
            torch.autograd.graph.increment_version(result)
            return result.detach(), None
        for part in _parts(scores):
            p = scores[part].to(gradient.dtype).softmax(1)
            of_row = gradient[part, None]
            result[part] = p.mul_(-of_row).scatter_add_(1, target[part, None], of_row)
        return result.detach(), None


def _parts(scores: Tensor) -> Iterator[slice]:
    rows = max(1, ELEMENTS_AT_ONCE // max(1, scores.shape[1]))
    yield from (slice(start, start + rows) for start in range(0, len(scores), rows))
