"""The log probability of one word in each row of scores as its equation."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def reference_target_log_probs(
    scores: Float[Tensor, "word vocabulary"], target: Int[Tensor, " word"]
) -> Float[Tensor, " word"]:
    """The same as its equation: the oracle."""
    log_p: Tensor = scores.to(wide(scores)).log_softmax(1)
    return log_p.gather(1, target[:, None])[:, 0]


def wide(scores: Tensor) -> torch.dtype:
    return torch.promote_types(scores.dtype, torch.float32)
