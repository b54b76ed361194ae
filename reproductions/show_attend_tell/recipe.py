"""The presets of Show, Attend and Tell: what the paper and its released code state, and ours.

Source: Xu et al., ICML 2015, sections 4 and 4.3 (RMSProp on Flickr8K, dropout, early stopping on BLEU, batches of 64
of one length), lambda = 1 and the weight of the entropy from the released code. Rates and dimensions for Flickr8K are
not printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from capbench.training.experiment import Training

HEADLINE = ("soft", "hard", "none")
ADAM = Training(epochs=8, batch_size=128, learning_rate=8e-4, decay_every=5, clip_norm=5.0, patience=3, average=0.998)
RMSPROP = Training(epochs=20, batch_size=64, learning_rate=1e-4, optimizer="rmsprop", clip_norm=5.0, patience=5)


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one model.

    attention: soft is deterministic, hard is stochastic, none looks at every location alike; lambda_doubly,
    lambda_reward, lambda_entropy: weights of the doubly stochastic penalty, of the reward and of the entropy.
    """

    attention: Literal["soft", "hard", "none"]
    embedding: int = 512
    hidden: int = 512
    attention_dim: int = 512
    dropout: float = 0.5
    lambda_doubly: float = 1.0
    lambda_reward: float = 1.0
    lambda_entropy: float = 0.002
    beam_size: int = 5
    min_count: int = 5
    output: Literal["grid"] = "grid"
    crop: Literal["whole"] = "whole"
    start_from: str | None = None
    training: Training = ADAM


def presets(dataset: str) -> Mapping[str, Recipe]:
    """Every preset by name, in the order of the tables.

    soft and hard, trained with Adam and averaged weights; none, the same decoder without attention; soft-rmsprop and
    hard-rmsprop, with the optimiser that the paper took for Flickr8K. On the embedded scenes the same presets are
    smaller and shorter.
    """
    found = {"soft": Recipe("soft"), "hard": Recipe("hard", lambda_reward=0.01), "none": Recipe("none")}
    for name in ("soft", "hard"):
        found[f"{name}-rmsprop"] = replace(found[name], training=RMSPROP)
    return {name: _on_scenes(recipe) for name, recipe in found.items()} if dataset == "scenes" else found


def _on_scenes(recipe: Recipe) -> Recipe:
    """A quarter of the dimensions, which want a higher rate, and two epochs without decay."""
    average = 0.98 if recipe.training.average else 0.0
    rate = 5 * recipe.training.learning_rate
    training = replace(recipe.training, epochs=2, learning_rate=rate, decay_every=None, average=average)
    return replace(recipe, embedding=128, hidden=128, attention_dim=64, dropout=0.2, training=training)
