"""The loss: the sum of hinges over all negatives of a batch."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from capbench.kernels.ranking_loss import ranking_loss
from capbench.training.shares import gathered, share

from .recipe import BagRecipe


def objective(
    recipe: BagRecipe,
    images: Float[Tensor, "pair dim"],
    captions: Float[Tensor, "pair dim"],
    image_ids: Int[Tensor, " pair"],
) -> Float[Tensor, ""]:
    """The loss of matched images and captions, or its share where several processes have a part of the batch each."""
    pairs = gathered(images), gathered(captions), gathered(image_ids)
    return share(ranking_loss(*pairs, recipe.margin, "sum_of_hinges"))
