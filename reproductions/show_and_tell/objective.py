"""The loss of Show and Tell (Vinyals et al., CVPR 2015, section 3.1)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from capbench.data.vocabulary import PAD
from capbench.kernels.log_prob import target_log_probs
from capbench.training.shares import mean

from .model import ShowAndTell


def objective(
    model: ShowAndTell, images: Float[Tensor, "caption feature"], captions: Int[Tensor, "caption length"]
) -> Float[Tensor, ""]:
    """Equation 13, L(I, S) = -sum_t log p_t(S_t), over the words of a batch and divided by their number, as in im2txt.

    Padding is left out before the scores are computed, which cost most.
    """
    words = captions[:, 1:]
    present = words != PAD
    m = model.outputs(images, captions)[present]
    return -mean(target_log_probs(model.word(m), words[present]))
