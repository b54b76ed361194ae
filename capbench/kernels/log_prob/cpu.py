"""Log probabilities of target words by torch's own operations, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from capbench.kernels._blocks import slices

ELEMENTS_AT_ONCE = 2**19  # 2 MiB in float32


def forward(scores: Tensor, target: Tensor) -> tuple[Tensor]:
    """log p of each target [word], of contiguous scores [word, vocabulary]."""
    log_probs = scores.new_empty(len(scores), dtype=torch.promote_types(scores.dtype, torch.float32))
    for rows in _blocks(scores):
        log_p = scores[rows].to(log_probs.dtype).log_softmax(1)
        log_probs[rows] = log_p.gather(1, target[rows, None])[:, 0]
    return (log_probs,)


def backward(scores: Tensor, target: Tensor, gradient: Tensor, result: Tensor) -> None:
    """The gradient of the scores into `result`, which may be the scores."""
    for rows in _blocks(scores):
        p = scores[rows].to(gradient.dtype).softmax(1)
        of_row = gradient[rows, None]
        result[rows] = p.mul_(-of_row).scatter_add_(1, target[rows, None], of_row)


def _blocks(scores: Tensor) -> Iterator[slice]:
    return slices(0, len(scores), max(1, ELEMENTS_AT_ONCE // max(1, scores.shape[1])))
