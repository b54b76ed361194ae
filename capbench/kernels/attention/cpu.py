"""Attention weights by torch's operations, a block of images at a time.

tanh(x) = 2 sigmoid(2x) - 1, and torch's sigmoid takes a sixth of the time of its tanh. Blocks of images share memory
that stays in the cache; the backward pass computes the sigmoids anew, which is faster than to fetch them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from capbench.kernels._blocks import scratch, slices

ELEMENTS_AT_ONCE = 2**23  # of [image, beam, location, attention] without a gradient: 32 MiB in float32
ELEMENTS_IN_CACHE = 2**19  # of the same in float32 and float64: 2 MiB in float32


def attention_weights(keys: Tensor, query: Tensor, v: Tensor) -> Tensor:
    """`capbench.kernels.attention.attention_weights`, unchecked, on any device."""
    if keys.numel() and _exact(keys, query, v):
        e: Tensor = _ShiftedScores.apply(keys, query, v)
    elif torch.is_grad_enabled():
        e = _scores(keys, query, v)
    else:
        step = max(1, ELEMENTS_AT_ONCE // max(1, query.shape[1] * keys[0].numel())) if len(keys) else 1
        e = torch.cat([_scores(k, q, v) for k, q in zip(keys.split(step), query.split(step), strict=True)])
    return e.to(torch.promote_types(e.dtype, torch.float32)).softmax(-1)


def _scores(keys: Tensor, query: Tensor, v: Tensor) -> Tensor:
    return linear((keys[:, None] + query[:, :, None]).tanh_(), v.view(1, -1) if v.ndim == 1 else v).squeeze(-1)


class _ShiftedScores(torch.autograd.Function):
    """Scores up to a constant, -sum(v), which the softmax removes: 2 v^T s with s = sigmoid(2 (k + q))."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, query: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(keys, query, v)
        scores = keys.new_empty(*query.shape[:2], keys.shape[1])
        for block, s in _sigmoids(keys, query):
            torch.matmul(s, 2 * v.flatten(), out=scores[block])
        return scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """4 v s (1 - s) de for keys and query, and (2 s - 1) de for v."""
        keys, query, v = ctx.saved_tensors
        d_keys, d_query, d_v = torch.empty_like(keys), torch.empty_like(query), -d_scores.sum() * torch.ones_like(v)
        four_v = 4 * v.flatten()
        for block, s in _sigmoids(keys, query):
            de = d_scores[block]
            d_v += 2 * (de.reshape(1, -1) @ s.view(-1, s.shape[-1])).view_as(v)
            slope = torch.addcmul(s, s, s, value=-1, out=s)
            torch.matmul(de[:, :, None], slope, out=d_query[block][:, :, None])
            of_beams = slope.mul_(de[..., None])
            torch.mul(of_beams[:, 0] if len(de[0]) == 1 else of_beams.sum(1), four_v, out=d_keys[block])
        return d_keys, d_query.mul_(four_v), d_v


def _sigmoids(keys: Tensor, query: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """sigmoid(2 (k + q)) [image, beam, location, attention] of some images after others, in memory that is reused."""
    beam, (_, *each) = query.shape[1], keys.shape
    step = max(1, ELEMENTS_IN_CACHE // max(1, beam * keys[0].numel()))
    for block in slices(0, len(keys), step):
        k, q = keys[block, None], 2 * query[block][:, :, None]
        yield block, torch.add(q, k, alpha=2, out=scratch("attention", (len(k), beam, *each), keys)).sigmoid_()


def _exact(*inputs: Tensor) -> bool:
    """Whether nothing is in half precision, which would round the constant."""
    dtypes = {x.dtype for x in inputs}
    return dtypes in ({torch.float32}, {torch.float64}) and not torch.is_autocast_enabled(inputs[0].device.type)
