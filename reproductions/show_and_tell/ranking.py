"""Ranking images and captions by likelihood (Show and Tell, section 4.3.5, tables 4 and 5)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from capbench.captioners.experiment import word_log_probs

PAIRS_AT_ONCE = 2000


@torch.no_grad()
def likelihoods(
    model: Any, images: Float[Tensor, "image feature"], captions: Int[Tensor, "caption length"]
) -> Float[Tensor, "image caption"]:
    """log p(S | I) of every image and caption; `captions` are padded word numbers, START to END."""
    columns = []
    at_once = max(1, PAIRS_AT_ONCE // len(images))
    for chunk in captions.split(at_once):
        chunk = chunk[:, : int((chunk != 0).sum(1).max())]
        pairs = chunk.repeat(len(images), 1)
        log_probs, _ = word_log_probs(model(images.repeat_interleave(len(chunk), 0), pairs), pairs)
        columns.append(log_probs.sum(1).view(len(images), len(chunk)))
    return torch.cat(columns, 1)


def normalised(log_p: Float[Tensor, "image caption"]) -> Float[Tensor, "image caption"]:
    """log p(S | I) - log sum_I' p(S | I'), the sum being over the images given.

    Without it the most common captions would come first for every image. The order of images for a caption stays the
    same.
    """
    return log_p - log_p.logsumexp(0, keepdim=True)
