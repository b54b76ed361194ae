"""The loss of Show and Tell (Vinyals et al., CVPR 2015, section 3.1)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from capbench.captioners.experiment import cross_entropy
from reproductions.show_and_tell.model import ShowAndTell


def objective(
    model: ShowAndTell, images: Float[Tensor, "caption feature"], captions: Int[Tensor, "caption length"]
) -> Float[Tensor, ""]:
    """Equation 13, L(I, S) = -sum_t log p_t(S_t), averaged over the words of the batch."""
    return cross_entropy(model(images, captions), captions)
