"""The loss of VSE++. Equations 5 and 6 are in `capbench/kernels/ranking_loss/reference.py`."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from capbench.kernels.ranking_loss import ranking_loss
from capbench.kernels.ranking_loss.reference import LOSSES, SIMILARITIES, Loss, Similarity, excluded_pairs

from .recipe import VSERecipe


def objective(
    recipe: VSERecipe,
    images: Float[Tensor, "pair dim"],
    captions: Float[Tensor, "pair dim"],
    image_ids: Int[Tensor, " pair"],
    epoch: int,
) -> Float[Tensor, ""]:
    """Equation 6 (max of hinges) or 5 (sum of hinges), as the recipe says; equation 5 during its warm-up.

    `image_ids` names the image of each pair. With `same_image_negatives` the pairs count as if all images differed.
    A recipe with `negatives` limits each query to that many (figure 2b), which takes the whole matrix.
    """
    loss: Loss = "sum_of_hinges" if epoch < recipe.warmup else recipe.loss
    similarity: Similarity = "order" if recipe.similarity == "order" else "dot"
    if recipe.same_image_negatives:
        image_ids = torch.arange(len(image_ids), device=image_ids.device)
    if recipe.negatives is None:
        return ranking_loss(images, captions, image_ids, recipe.margin, loss, similarity)
    S = SIMILARITIES[similarity](images, captions)  # noqa: N806 (the paper's letter)
    return LOSSES[loss](S, excluded_pairs(image_ids, recipe.negatives), recipe.margin)
