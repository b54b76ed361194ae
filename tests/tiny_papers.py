"""Every paper small enough to run in a test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from capbench.data.captions import CaptionDataset
from capbench.data.scenes import scenes
from capbench.runs import paper as registry
from capbench.runs.paper import Paper
from capbench.training.experiment import Recipe

SIZES = ("embedding_dim", "hidden_dim", "attention_dim")


def make_papers_tiny(monkeypatch: pytest.MonkeyPatch, cache: Path) -> CaptionDataset:
    """Give every paper the presets of scenes with two epochs of a tiny model, and features a cache; a few scenes."""
    discovered = list(registry.papers().values())
    monkeypatch.setattr(registry, "_discover", lambda: map(_tiny, discovered))
    monkeypatch.setenv("CAPBENCH_CACHE", str(cache))
    return scenes(seed=5, train=60, val=15, test=20)


def _tiny(paper: Paper) -> Paper:
    return replace(paper, presets=lambda _: {name: _small(recipe) for name, recipe in paper.presets("scenes").items()})


def _small(recipe: Recipe) -> Recipe:
    sizes: dict[str, Any] = {name: 16 for name in SIZES if hasattr(recipe, name)}
    training = replace(recipe.training, epochs=2, batch_size=32)
    return replace(recipe, **sizes, training=training, warmup=min(recipe.warmup, 1))
