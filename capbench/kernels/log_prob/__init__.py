"""The log probability of one word in each row of scores, for cross entropy and likelihoods.

log p(t) = x_t - log sum_w exp(x_w), with the gradient [w = t] - p_w by x_w. Nothing of the size of the scores is kept:
the backward pass recomputes the probabilities and writes the gradient over the scores.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.kernels._arguments import Array, tensors
from capbench.kernels._triton import runs_triton
from capbench.kernels.log_prob import cpu


def target_log_probs(scores: Float[Array, "word vocabulary"], target: Int[Array, " word"]) -> Float[Tensor, " word"]:
    """log p of each row's target, in float32 (float64 for float64 scores), under autocast too.

    **The backward pass overwrites `scores`, and all that shares their memory, with the gradient**, unless they are a
    leaf; autograd raises where another operation still needs them. Deterministic.
    Raises CapbenchError for wrong types or shapes, and for a target outside the vocabulary (not checked on a GPU).

    >>> import torch
    >>> from capbench.kernels.log_prob import target_log_probs
    >>> target_log_probs(torch.tensor([[1.0, 1.0], [0.0, 50.0]]), torch.tensor([0, 1])).exp().tolist()
    [0.5, 1.0]
    """
    scores, target = tensors(scores=(scores, "float word vocabulary+"), target=(target, "int word"))
    if not target.is_cuda and len(target) and not 0 <= int(target.min()) <= int(target.max()) < scores.shape[1]:
        raise CapbenchError(f"target must lie in 0..{scores.shape[1] - 1}, the words of the scores")
    log_probs: Tensor = _TargetLogProbs.apply(scores, target)
    return log_probs


class _TargetLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, target: Tensor) -> Tensor:
        base = scores._base if scores._is_view() else scores
        ctx.keeps_scores = base is None or base.is_leaf
        scores = scores.contiguous()
        log_probs, *saved = _path(scores).forward(scores, target)
        ctx.save_for_backward(scores, target, *saved)
        return log_probs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scores, target, *saved = ctx.saved_tensors
        result = torch.empty_like(scores) if ctx.keeps_scores else scores
        _path(scores).backward(scores, target, *saved, gradient, result)
        return result.detach(), None


def _path(scores: Tensor) -> ModuleType:
    if runs_triton(scores):
        from capbench.kernels.log_prob import triton

        return triton
    return cpu
