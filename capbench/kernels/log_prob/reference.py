"""The log probability of one word in each row of scores, as its equation."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def reference_target_log_probs(
    scores: Float[Tensor, "word vocabulary"], target: Int[Tensor, " word"]
) -> Float[Tensor, " word"]:
    """log p(t) = x_t - log sum_w exp(x_w)."""
    log_p: Tensor = scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(1)
    return log_p.gather(1, target[:, None])[:, 0]
