"""The presets of VSE++: what the paper and its released code state, and what we add.

Source of the published values: Faghri et al., BMVC 2018, section 3.2; word dimension, clipping and vocabulary threshold
from the released code; order presets from table 4 and the code's README.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from capbench.training.experiment import Training

HEADLINE = ("vse0", "vsepp", "vsepp-small")
NEGATIVES = (1, 4, 16, 64)
PUBLISHED = Training(epochs=30, batch_size=128, learning_rate=2e-4, decay_every=15, clip_norm=2.0)


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one model.

    input: features as they are, or their square roots with each coordinate standardised over the training images (they
    are means of rectified maps, with long tails); keep_bias: what the GRU's update gate starts with, so that it keeps
    its state; warmup: epochs of the sum of hinges before the max; negatives: the size of each query's set of negatives,
    all of the batch where None; crop: stored features, or RC, which crops anew at each step; start_from:
    the preset whose snapshot is fine-tuned.
    """

    loss: Literal["sum_of_hinges", "max_of_hinges"]
    normalise_images: bool = True
    similarity: Literal["cosine", "order"] = "cosine"
    absolute: bool = False
    margin: float = 0.2
    embedding: int = 1024
    word: int = 300
    min_count: int = 4
    input: Literal["raw", "standardised_roots"] = "raw"
    keep_bias: float = 0.0
    warmup: int = 0
    negatives: int | None = None
    crop: Literal["1C", "10C", "RC", "whole", "views"] = "1C"
    finetune: bool = False
    start_from: str | None = None
    output: Literal["vector"] = "vector"
    training: Training = PUBLISHED


VSE0 = Recipe("sum_of_hinges", normalise_images=False)
VSEPP = Recipe("max_of_hinges")

PUBLISHED_PRESETS = {
    "vse0": VSE0,
    "vsepp": VSEPP,
    "order0": replace(
        VSE0,
        normalise_images=True,
        similarity="order",
        absolute=True,
        margin=0.05,
        crop="10C",
        training=replace(PUBLISHED, learning_rate=1e-3),
    ),
    "orderpp": replace(VSEPP, similarity="order", crop="10C"),
}


def protocols(dataset: str, recipe: Recipe) -> tuple[str, ...]:
    """COCO's 5,000 test images are scored whole and in thousands, every other test set whole."""
    return ("1K", "5-fold 1K", "5K") if dataset in ("coco", "coco-norestval") else ("whole",)


def for_small_data(recipe: Recipe) -> Recipe:
    """Four views of an image, standardised features, a GRU that keeps its state, averaged weights, fewer epochs."""
    training = replace(PUBLISHED, epochs=5, learning_rate=5e-4, decay_every=4, average=0.998)
    return replace(recipe, input="standardised_roots", crop="views", keep_bias=3.0, training=training)


def presets(dataset: str) -> Mapping[str, Recipe]:
    """Every preset by name, in the order of the tables.

    Published: vse0, vsepp, order0, orderpp, with -10C (mean of ten crops), -RC (a random crop at each step) and -ft
    (the encoder fine-tuned for 15 epochs from the end of the fixed one). Ours, for small data sets: vse0-small and
    vsepp-small, whose features are of four views of each image and standardised, whose GRU starts as a slow average of
    its words, whose weights are averaged over the last steps, and of which the second has one epoch of the sum before
    the max; and vsepp-negatives-n, which is vsepp-small with n negatives for each query. On the embedded scenes the
    same presets are smaller and shorter, for two cores and a few minutes.
    """
    found = dict(PUBLISHED_PRESETS)
    for name in ("vse0", "vsepp"):
        fixed = PUBLISHED_PRESETS[name]
        found[f"{name}-10C"] = replace(fixed, crop="10C")
        found[f"{name}-RC"] = replace(fixed, crop="RC")
        tuning = replace(PUBLISHED, epochs=15, learning_rate=2e-5, decay_every=None)
        found[f"{name}-ft"] = replace(fixed, crop="RC", finetune=True, start_from=name, training=tuning)
    found["vse0-small"] = for_small_data(VSE0)
    found["vsepp-small"] = replace(for_small_data(VSEPP), warmup=1)
    for size in NEGATIVES:
        found[f"vsepp-negatives-{size}"] = replace(found["vsepp-small"], negatives=size)
    return {name: _on_scenes(recipe) for name, recipe in found.items()} if dataset == "scenes" else found


def _on_scenes(recipe: Recipe) -> Recipe:
    """An eighth of the dimensions, which want a higher rate; the published schedule at two fifths of its length."""
    training = recipe.training
    if recipe.keep_bias:
        training = replace(training, epochs=7, learning_rate=2e-3, decay_every=5, average=0.98)
    else:
        decay_every = None if training.decay_every is None else 8  # behind the plateau
        epochs, rate = 2 * training.epochs // 5, 5 * training.learning_rate
        training = replace(training, epochs=epochs, learning_rate=rate, decay_every=decay_every)
    crop = "whole" if recipe.crop == "views" else recipe.crop
    return replace(recipe, embedding=128, word=64, crop=crop, training=training)
