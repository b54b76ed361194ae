"""One step of additive attention as its equations."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def reference_attention_step(
    keys: Float[Tensor, "image location attention"], annotations: Float[Tensor, "image location dim"],
    query: Float[Tensor, "image beam attention"], v: Float[Tensor, "*one attention"],
) -> tuple[Float[Tensor, "image beam dim"], Float[Tensor, "image beam location"]]:  # fmt: skip
    """The context and the weights: e_i = v^T tanh(k_i + q), alpha = softmax(e), context = sum_i alpha_i a_i."""
    e = torch.einsum("kbia,a->kbi", torch.tanh(keys[:, None] + query[:, :, None]), v.flatten())
    alpha = e.softmax(-1)
    return torch.einsum("kbi,kid->kbd", alpha, annotations), alpha
