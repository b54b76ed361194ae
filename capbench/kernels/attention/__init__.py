"""One step of additive attention: where each hypothesis looks, and what it sees there.

e_i = v^T tanh(k_i + q), alpha = softmax(e), context = sum_i alpha_i a_i over the locations i of an image, with the keys
k_i = W_a a_i made once for all steps and the query q = W_h h of each hypothesis (Bahdanau, Cho, Bengio, ICLR 2015,
appendix A.1.2; Xu et al., ICML 2015, equations 4 to 6 and 13). The CPU path is torch's own operations with the tanh in
place; where nothing is kept for a gradient some images at a time, and outside half precision the tanh by way of a
sigmoid. On a GPU Triton reads the keys and annotations of an image from memory once for all its beams, and keeps no
[image, beam, location, attention]: the backward pass computes it again (attention_triton). Forward and backward are
deterministic: on a CPU for a given number of threads; on a GPU as far as cuBLAS is, which multiplies in the backward
pass of the context.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from capbench.kernels._scratch import scratch
from capbench.kernels._triton import runs_triton

ELEMENTS_AT_ONCE = 2**23  # of [image, beam, location, attention] where no gradient is asked for: 32 MiB in float32
ELEMENTS_IN_CACHE = 2**20  # of the same outside of half precision: 4 MiB in float32
EXACT = (torch.float32, torch.float64)


def attention_step(
    keys: Float[Tensor, "image location attention"],
    annotations: Float[Tensor, "image location dim"],
    query: Float[Tensor, "image beam attention"],
    v: Float[Tensor, "*one attention"],
) -> tuple[Float[Tensor, "image beam dim"], Float[Tensor, "image beam location"]]:
    """The context and the attention weights of every beam.

    The weights are float32 (float64 for float64 keys) and sum to one over the locations; the context has the type of
    the annotations, or on a CPU that of autocast. `v` may also be the [1, attention] weight of a linear layer itself,
    which autocast converts once for all steps. Deterministic as the module says.
    """
    if runs_triton(keys):
        from capbench.kernels.attention_triton import TritonContext, TritonScores

        context, weights = TritonContext.apply(TritonScores.apply(keys, query, v), annotations)
        return context, weights
    weights = attention_weights(keys, query, v)
    return weights.to(annotations.dtype) @ annotations, weights


def attention_weights(
    keys: Float[Tensor, "image location attention"],
    query: Float[Tensor, "image beam attention"],
    v: Float[Tensor, "*one attention"],
) -> Float[Tensor, "image beam location"]:
    """The attention weights of `attention_step` alone."""
    if runs_triton(keys):
        from capbench.kernels.attention_triton import TritonScores

        scores: Tensor = TritonScores.apply(keys, query, v)
        return scores.softmax(-1)
    if torch.is_grad_enabled():
        e = _scores(keys, query, v)
    elif _whole(keys, query, v):
        e = _shifted_scores(keys, query, v.view(1, -1))
    else:
        step = max(1, ELEMENTS_AT_ONCE // max(1, query.shape[1] * keys[0].numel())) if len(keys) else 1
        e = torch.cat([_scores(k, q, v) for k, q in zip(keys.split(step), query.split(step), strict=True)])
    return e.to(torch.promote_types(e.dtype, torch.float32)).softmax(-1)


def reference_attention_step(
    keys: Float[Tensor, "image location attention"],
    annotations: Float[Tensor, "image location dim"],
    query: Float[Tensor, "image beam attention"],
    v: Float[Tensor, "*one attention"],
) -> tuple[Float[Tensor, "image beam dim"], Float[Tensor, "image beam location"]]:
    """The same as its equations: the oracle."""
    e = torch.einsum("kbia,a->kbi", torch.tanh(keys[:, None] + query[:, :, None]), v.flatten())
    alpha = e.softmax(-1)
    return torch.einsum("kbi,kid->kbd", alpha, annotations), alpha


def _scores(keys: Tensor, query: Tensor, v: Tensor) -> Tensor:
    return linear((keys[:, None] + query[:, :, None]).tanh_(), v.view(1, -1) if v.ndim == 1 else v).squeeze(-1)


def _shifted_scores(keys: Tensor, query: Tensor, v: Tensor) -> Tensor:
    """Scores less sum(v), which the softmax does not see: tanh(x) = 2 sigmoid(2x) - 1, and torch's sigmoid takes a
    sixth of the time of its tanh. Some images at a time in one place that stays in the cache."""
    beam, (_, *each) = query.shape[1], keys.shape
    step = max(1, ELEMENTS_IN_CACHE // max(1, beam * keys[0].numel()))
    parts = []
    for k, q in zip(keys[:, None].split(step), (2 * query[:, :, None]).split(step), strict=True):
        seen = torch.add(q, k, alpha=2, out=scratch("attention", (len(k), beam, *each), keys))
        parts.append(linear(seen.sigmoid_(), 2 * v).squeeze(-1))
    return torch.cat(parts)


def _whole(keys: Tensor, query: Tensor, v: Tensor) -> bool:
    """Whether no half precision is near, which would round the shift."""
    alike = all(x.dtype is keys.dtype and x.dtype in EXACT for x in (keys, query, v))
    return alike and keys.numel() > 0 and not torch.is_autocast_enabled(keys.device.type)
