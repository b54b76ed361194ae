"""Ranks by their definition, over a whole matrix of similarities."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def reference_ranks(
    similarity: Float[Tensor, "image caption"], image_of_caption: Int[Tensor, " caption"]
) -> tuple[Int[Tensor, " image"], Int[Tensor, " caption"]]:
    """How many wrong candidates score at least as high as the right one, or as the best of an image's captions."""
    matched = image_of_caption == torch.arange(len(similarity), device=similarity.device)[:, None]
    right = similarity.masked_fill(~matched, -torch.inf)
    by_image = ((similarity >= right.amax(1, keepdim=True)) & ~matched).sum(1)
    by_caption = ((similarity >= right.amax(0)) & ~matched).sum(0)
    return by_image, by_caption
