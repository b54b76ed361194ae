"""The losses of Karpathy & Fei-Fei (CVPR 2015)."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from capbench.captioners.experiment import cross_entropy
from capbench.data.vocabulary import PAD
from capbench.kernels.log_prob import target_log_probs
from capbench.kernels.ranking_loss.reference import excluded_pairs, sum_of_hinges
from capbench.training.shares import everywhere


def structured_margin(
    S: Float[Tensor, "pair pair"],  # noqa: N803 (the paper's letter)
    images: Int[Tensor, " pair"],
    margin: float,
) -> Float[Tensor, ""]:
    """Equation 9: sum_k [ sum_l max(0, S_kl - S_kk + 1) + sum_l max(0, S_lk - S_kk + 1) ], with `margin` for the 1.

    `images` holds the image id of each pair; a caption of the same image is not a negative.
    """
    return sum_of_hinges(S, excluded_pairs(images), margin)


def cost_per_word(
    model: Any, images: Float[Tensor, "caption feature"], captions: Int[Tensor, "caption length"]
) -> Float[Tensor, ""]:
    """Section 3.2: -log p(next word), START to END, averaged over the words of the batch."""
    return cross_entropy(model(images, captions), captions)


def cost_per_sentence(
    model: Any, images: Float[Tensor, "caption feature"], captions: Int[Tensor, "caption length"]
) -> Float[Tensor, ""]:
    """-log p(next word), summed over the words of a caption, START to END, and averaged over the captions.

    Source: karpathy/neuraltalk, driver.py, RNNGenCost.
    """
    target = captions[:, 1:]
    present = target != PAD
    y = model.scores(model.states(images, captions)[present])
    return -target_log_probs(y, target[present]).sum() / everywhere(len(captions))
