"""Attention weights by torch's operations; without a gradient, a block of images at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from capbench.kernels._blocks import scratch

ELEMENTS_AT_ONCE = 2**23  # of [image, beam, location, attention] without a gradient: 32 MiB in float32
ELEMENTS_IN_CACHE = 2**20  # of the same in float32 and float64: 4 MiB in float32


def attention_weights(keys: Tensor, query: Tensor, v: Tensor) -> Tensor:
    """`capbench.kernels.attention.attention_weights`, unchecked, on any device."""
    if torch.is_grad_enabled():
        e = _scores(keys, query, v)
    elif keys.numel() and _exact(keys, query, v):
        e = _shifted_scores(keys, query, v.view(1, -1))
    else:
        step = max(1, ELEMENTS_AT_ONCE // max(1, query.shape[1] * keys[0].numel())) if len(keys) else 1
        e = torch.cat([_scores(k, q, v) for k, q in zip(keys.split(step), query.split(step), strict=True)])
    return e.to(torch.promote_types(e.dtype, torch.float32)).softmax(-1)


def _scores(keys: Tensor, query: Tensor, v: Tensor) -> Tensor:
    return linear((keys[:, None] + query[:, :, None]).tanh_(), v.view(1, -1) if v.ndim == 1 else v).squeeze(-1)


def _shifted_scores(keys: Tensor, query: Tensor, v: Tensor) -> Tensor:
    """Scores up to a constant, -sum(v), which the softmax removes: tanh(x) = 2 sigmoid(2x) - 1, and torch's sigmoid
    takes a sixth of the time of its tanh. Blocks of images share memory that stays in the cache."""
    beam, (_, *each) = query.shape[1], keys.shape
    step = max(1, ELEMENTS_IN_CACHE // max(1, beam * keys[0].numel()))
    scores = []
    for k, q in zip(keys[:, None].split(step), (2 * query[:, :, None]).split(step), strict=True):
        seen = torch.add(q, k, alpha=2, out=scratch("attention", (len(k), beam, *each), keys))
        scores.append(linear(seen.sigmoid_(), 2 * v).squeeze(-1))
    return torch.cat(scores)


def _exact(*inputs: Tensor) -> bool:
    """Whether nothing is in half precision, which would round the constant."""
    dtypes = {x.dtype for x in inputs}
    return dtypes in ({torch.float32}, {torch.float64}) and not torch.is_autocast_enabled(inputs[0].device.type)
