"""maxsim as its equation."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Form = Literal["max", "sum"]


def reference_maxsim(
    regions: Float[Tensor, "image region dim"], words: Float[Tensor, "caption word dim"],
    lengths: Int[Tensor, " caption"], form: Form = "max",
) -> Float[Tensor, "image caption"]:  # fmt: skip
    """S_kl = sum_t max_i v_i . s_t, or sum_t sum_i max(0, v_i . s_t), from [image, caption, region, word]."""
    wide = torch.promote_types(regions.dtype, torch.float32)
    products = torch.einsum("kid,ltd->klit", regions.to(wide), words.to(wide))
    present = torch.arange(words.shape[1], device=words.device) < lengths[:, None].to(words.device)
    best = products.amax(2) if form == "max" else products.clamp(min=0).sum(2)
    return best.masked_fill(~present, 0).sum(2)
