"""The losses of Karpathy & Fei-Fei (CVPR 2015)."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from capbench.captioners.experiment import cross_entropy
from capbench.kernels.ranking_loss.reference import excluded_pairs, sum_of_hinges


def structured_margin(
    S: Float[Tensor, "pair pair"],  # noqa: N803 (the paper's letter)
    images: Int[Tensor, " pair"],
    margin: float,
) -> Float[Tensor, ""]:
    """Equation 9: for each pair k, sum_l max(0, S_kl - S_kk + 1) over captions l and sum_l max(0, S_lk - S_kk + 1) over
    images l.

    `images` says whose image each pair has: a caption of the same image is no negative.
    """
    return sum_of_hinges(S, excluded_pairs(images), margin)


def negative_log_likelihood(
    model: Any, images: Float[Tensor, "caption feature"], captions: Int[Tensor, "caption length"]
) -> Float[Tensor, ""]:
    """Section 3.2: the softmax cost of each next word, START to END, as a mean of a word."""
    return cross_entropy(model(images, captions), captions)
