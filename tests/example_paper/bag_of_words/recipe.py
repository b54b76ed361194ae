"""The presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capbench.training.experiment import Recipe, Training

HEADLINE = ("bag",)
SHORT = Training(epochs=2, batch_size=32, learning_rate=1e-2)


@dataclass(frozen=True, kw_only=True)
class BagRecipe(Recipe):
    """Hyper-parameters of the embedding."""

    embedding_dim: int = 16
    margin: float = 0.2
    min_count: int = 1
    training: Training = SHORT


def presets(dataset: str) -> Mapping[str, BagRecipe]:
    """One preset, the same on every data set."""
    return {"bag": BagRecipe()}
