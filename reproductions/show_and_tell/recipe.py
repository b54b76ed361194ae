"""The presets of Show and Tell: what the paper and its released code state, and ours.

Source: Vinyals et al., CVPR 2015, sections 3 and 4.3.1 (embedding and LSTM 512, SGD with a fixed rate and no momentum,
dropout, words that occur five times, beam 20). The rates and the clipping are not printed there; they are those of the
code released in 2016.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from capbench.training.experiment import Training

HEADLINE = ("sgd", "adam", "adam-ensemble")
PUBLISHED = Training(
    epochs=24, batch_size=32, learning_rate=2.0, optimizer="sgd", decay_every=8, decay=0.5, clip_norm=5.0
)


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one model.

    dropout: of the LSTM's inputs and outputs; standardise: whether each coordinate of the image feature is brought to
    mean 0 and deviation 1 over a batch; keep_bias: what the forget gate starts with, so that the image, seen once, is
    kept; members: how many models of `start_from`, of consecutive seeds, write together, by the mean of their
    probabilities.
    """

    embedding: int = 512
    hidden: int = 512
    dropout: float = 0.3
    standardise: bool = False
    keep_bias: float = 0.0
    beam_size: int = 20
    min_count: int = 5
    output: Literal["vector"] = "vector"
    crop: Literal["1C", "10C", "RC", "whole", "views"] = "1C"
    start_from: str | None = None
    members: int = 1
    training: Training = PUBLISHED


SGD = Recipe()
ADAM = Recipe(
    dropout=0.3,
    standardise=True,
    keep_bias=1.0,
    crop="views",
    training=Training(epochs=8, batch_size=64, learning_rate=1e-3, decay_every=5, clip_norm=5.0, average=0.998),
)


def presets(dataset: str) -> Mapping[str, Recipe]:
    """Every preset by name, in the order of the tables.

    sgd is the paper's recipe; adam is ours, with standardised features of four views of each image, an LSTM that keeps
    its state, averaged weights and fewer epochs; adam-ensemble is three of adam writing together. On the embedded
    scenes the same presets are smaller and shorter.
    """
    ensemble = replace(ADAM, start_from="adam", members=3, training=replace(ADAM.training, epochs=1))
    found = {"sgd": SGD, "adam": ADAM, "adam-ensemble": ensemble}
    return {name: _on_scenes(recipe) for name, recipe in found.items()} if dataset == "scenes" else found


def _on_scenes(recipe: Recipe) -> Recipe:
    """A quarter of the dimensions, which want a higher rate under Adam, fewer epochs, and a narrower beam.

    Each word of a scene's caption could be another one, so that the likeliest caption is none at all, and a beam of 20
    finds it.
    """
    training = replace(recipe.training, epochs=min(8, recipe.training.epochs), decay_every=5)
    if training.optimizer == "adam":
        training = replace(training, learning_rate=3e-3, average=0.98)
    crop = "whole" if recipe.crop == "views" else recipe.crop
    return replace(recipe, embedding=128, hidden=128, dropout=0.2, crop=crop, beam_size=3, training=training)
