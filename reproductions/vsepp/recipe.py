"""The presets of VSE++: those of the paper and its released code, and ours.

Sources: Faghri et al., BMVC 2018, section 3.2; the released code for word dimension, clipping and vocabulary; table 4
and the code's README for the order embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveInt

from capbench.metrics.rsum import RECALLS
from capbench.training.experiment import Recipe, Training
from capbench.vision.extraction import View

HEADLINE = ("vse0", "vsepp", "vsepp-ours")
NEGATIVES = (1, 4, 16, 64)
PUBLISHED = Training(epochs=30, batch_size=128, learning_rate=2e-4, lr_step_epochs=15, clip_norm=2.0, precision="full")


@dataclass(frozen=True, kw_only=True)
class VSERecipe(Recipe):
    """Hyper-parameters of a joint embedding."""

    loss: Literal["sum_of_hinges", "max_of_hinges"]
    similarity: Literal["cosine", "dot", "order"] = "cosine"  # dot: only the captions have unit length
    absolute: bool = False  # whether embeddings are replaced by their absolute values
    margin: NonNegativeFloat = 0.2
    embedding_dim: PositiveInt = 1024
    word_dim: PositiveInt = 300
    min_count: PositiveInt = 4
    input: Literal["unit", "standardised_roots"] = "unit"  # features of unit length, or their standardised square roots
    update_gate_bias: float = 0.0  # initial bias of the GRU's update gate; above 0 the GRU first keeps its state
    batches: Literal["random", "length_grouped"] = "random"  # captions of any lengths, or of nearly one
    same_image_negatives: bool = True  # whether another caption of the same image is a negative
    negatives: PositiveInt | None = None  # how many negatives each query has; None: the whole batch
    output: Literal["vector"] = "vector"
    training: Training = PUBLISHED

    heeded: ClassVar = ("warmup", "finetune")

    @property
    def choosers(self) -> tuple[str, ...]:
        return (*RECALLS, "rsum")


VSE0 = VSERecipe(loss="sum_of_hinges", similarity="dot")
VSEPP = VSERecipe(loss="max_of_hinges")

PUBLISHED_PRESETS = {
    "vse0": VSE0,
    "vsepp": VSEPP,
    "order0": replace(
        VSE0,
        similarity="order",
        absolute=True,
        margin=0.05,
        view="10C",
        training=replace(PUBLISHED, learning_rate=1e-3),
    ),
    "orderpp": replace(VSEPP, similarity="order", view="10C"),
}


def protocols(dataset: str, recipe: VSERecipe) -> tuple[str, ...]:
    """COCO's 5,000 test images are scored whole and in thousands; every other test set is scored whole."""
    return ("1K", "5-fold 1K", "5K") if dataset in ("coco", "coco-norestval") else ("whole",)


def for_small_data(recipe: VSERecipe) -> VSERecipe:
    """Four views of an image, standardised features, a GRU that keeps its state, averaged weights, fewer epochs.

    Batches hold captions of nearly one length, and two captions of one image are no negatives of each other.
    """
    training = Training(epochs=5, batch_size=128, learning_rate=5e-4, lr_step_epochs=4, clip_norm=2.0, ema_decay=0.998)
    return replace(
        recipe,
        input="standardised_roots",
        view="views",
        update_gate_bias=3.0,
        batches="length_grouped",
        same_image_negatives=False,
        training=training,
    )


def presets(dataset: str) -> Mapping[str, VSERecipe]:
    """Every preset by name, in the order of the tables.

    The paper's: vse0, vsepp, order0 and orderpp; -10C takes the mean of ten crops, -RC a random crop at each step, and
    -ft fine-tunes the encoder for 15 epochs after the 30 with the encoder fixed.

    Ours: vse0-ours and vsepp-ours are for small data sets (see `for_small_data`), and vsepp-ours starts with one epoch
    of the sum of hinges. vsepp-negatives-N-ours is vsepp-ours with N negatives for each query.

    On the scenes the same presets are smaller and shorter, for a few minutes on two cores.
    """
    recipes = dict(PUBLISHED_PRESETS)
    for name in ("vse0", "vsepp"):
        fixed = PUBLISHED_PRESETS[name]
        recipes[f"{name}-10C"] = replace(fixed, view="10C")
        recipes[f"{name}-RC"] = replace(fixed, view="RC")
        tuning = replace(PUBLISHED, epochs=15, learning_rate=2e-5, lr_step_epochs=None)
        recipes[f"{name}-ft"] = replace(fixed, view="RC", finetune=True, init_from=name, training=tuning)
    recipes["vse0-ours"] = for_small_data(VSE0)
    recipes["vsepp-ours"] = replace(for_small_data(VSEPP), warmup=1)
    for size in NEGATIVES:
        recipes[f"vsepp-negatives-{size}-ours"] = replace(recipes["vsepp-ours"], negatives=size)
    return {name: _on_scenes(recipe) for name, recipe in recipes.items()} if dataset == "scenes" else recipes


def _on_scenes(recipe: VSERecipe) -> VSERecipe:
    """An eighth of the dimensions with a higher rate; the published schedule at two fifths of its length."""
    training = recipe.training
    if recipe.update_gate_bias:
        training = replace(training, epochs=7, learning_rate=2e-3, lr_step_epochs=5, ema_decay=0.98)
    else:
        step = None if training.lr_step_epochs is None else 8  # after the plateau
        epochs, rate = 2 * training.epochs // 5, 5 * training.learning_rate
        training = replace(training, epochs=epochs, learning_rate=rate, lr_step_epochs=step)
    view: View = "whole" if recipe.view == "views" else recipe.view
    return replace(recipe, embedding_dim=128, word_dim=64, view=view, training=training)
