"""maxsim as its equation, and the checks of its arguments."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from capbench.base.errors import CapbenchError

Form = Literal["max", "sum"]


def reference_maxsim(
    regions: Float[Tensor, "image region dim"], words: Float[Tensor, "caption word dim"],
    lengths: Int[Tensor, " caption"], form: Form = "max",
) -> Float[Tensor, "image caption"]:  # fmt: skip
    """S_kl = sum_t max_i v_i . s_t, or sum_t sum_i max(0, v_i . s_t), from [image, caption, region, word]."""
    check(regions, words, lengths, form)
    wide = torch.promote_types(regions.dtype, torch.float32)
    products = torch.einsum("kid,ltd->klit", regions.to(wide), words.to(wide))
    present = torch.arange(words.shape[1], device=words.device) < lengths[:, None].to(words.device)
    best = products.amax(2) if form == "max" else products.clamp(min=0).sum(2)
    return best.masked_fill(~present, 0).sum(2)


def check(regions: Tensor, words: Tensor, lengths: Tensor, form: str) -> None:
    """Raises CapbenchError for an unknown form, too many regions, or a length outside the words."""
    if form not in ("max", "sum"):
        raise CapbenchError(f"form must be max or sum, not {form!r}")
    if regions.shape[1] >= 2**15:
        raise CapbenchError(f"an image may have {2**15 - 1} regions, and has {regions.shape[1]}")
    capturing = lengths.is_cuda and torch.cuda.is_current_stream_capturing()
    if len(lengths) and not capturing and not 0 <= int(lengths.min()) <= int(lengths.max()) <= words.shape[1]:
        raise CapbenchError(f"lengths must lie in 0..{words.shape[1]}, the words that a caption has room for")
