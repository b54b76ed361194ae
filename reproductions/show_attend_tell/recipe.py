"""The presets of Show, Attend and Tell: those of the paper and its released code, and ours.

Sources: Xu et al., ICML 2015, sections 4 and 4.3 (RMSProp on Flickr8K, dropout, early stopping on BLEU, batches of 64
captions of one length); the released capgen.py for RMSProp's rates, the weights of the losses and the initial weights.
Dimensions for Flickr8K are not printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt

from capbench.captioners.experiment import CaptioningRecipe
from capbench.training.experiment import Share, Training
from capbench.vision.extraction import View

HEADLINE = ("soft-ours", "hard-ours", "none-ours")
PUBLISHED = Training(
    epochs=20, batch_size=64, patience=5,
    learning_rate=1e-4, optimizer="rmsprop", momentum=0.9, rms_decay=0.95, rms_epsilon=1e-4, rms_centred=True,
)  # fmt: skip
OURS = Training(
    epochs=7, batch_size=128, learning_rate=8e-4, lr_step_epochs=5, clip_norm=5.0, patience=3, ema_decay=0.998
)


@dataclass(frozen=True, kw_only=True)
class AttentionRecipe(CaptioningRecipe):
    """Hyper-parameters of one model."""

    attention: Literal["soft", "hard", "none"]  # deterministic, stochastic, or the same weight everywhere
    embedding_dim: PositiveInt = 512
    hidden_dim: PositiveInt = 512
    attention_dim: PositiveInt = 512
    dropout: Share = 0.5
    lambda_doubly: NonNegativeFloat = 1.0  # weight of the doubly stochastic penalty of soft attention
    lambda_reward: NonNegativeFloat = 1.0  # weight of the reward of hard attention
    lambda_entropy: NonNegativeFloat = 0.002  # weight of the entropy of hard attention
    beam_size: PositiveInt = 5
    output: Literal["grid", "regions"] = "grid"
    view: View = "whole"
    training: Training = PUBLISHED


def presets(dataset: str) -> Mapping[str, AttentionRecipe]:
    """Every preset by name, in the order of the tables.

    soft and hard have the optimiser that the paper took for Flickr8K. The others are trained with Adam and averaged
    weights: soft-ours; none-ours, the same decoder without attention; hard-released-ours, which has the released
    weights of reward and entropy; hard-ours, which has a hundredth of both. On the scenes the same presets are smaller
    and shorter.
    """
    soft, hard = AttentionRecipe(attention="soft"), AttentionRecipe(attention="hard")
    recipes = {
        "soft-ours": replace(soft, training=OURS),
        "hard-ours": replace(hard, training=OURS, lambda_reward=0.01, lambda_entropy=0.00002),
        "hard-released-ours": replace(hard, training=OURS),
        "none-ours": replace(soft, training=OURS, attention="none"),
        "soft": soft,
        "hard": hard,
    }
    return {name: _on_scenes(recipe) for name, recipe in recipes.items()} if dataset == "scenes" else recipes


def _on_scenes(recipe: AttentionRecipe) -> AttentionRecipe:
    """A quarter of the dimensions with a higher rate, and two epochs at one rate."""
    ema_decay = 0.98 if recipe.training.ema_decay else 0.0
    rate = 5 * recipe.training.learning_rate
    training = replace(recipe.training, epochs=2, learning_rate=rate, lr_step_epochs=None, ema_decay=ema_decay)
    small = replace(recipe, embedding_dim=128, hidden_dim=128, attention_dim=64, dropout=0.2)
    return replace(small, choose_beam=False, training=training)
