"""What every paper provides, and how papers are found."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from capbench.base.errors import unknown
from capbench.data.vocabulary import Vocabulary
from capbench.evidence.verdicts import Claim, Reported, read_reported
from capbench.training.experiment import Experiment, Inputs, Recipe


@dataclass(frozen=True)
class Paper:
    """A reproduction: its presets, how one of them becomes an experiment, what the paper reported and claims.

    `presets(dataset)` gives the frozen recipes by name, in the order in which tables show them; `headline` are those
    that a plain reproduction runs; `metric` is the validation metric that chooses the snapshot, higher being better,
    unless a recipe names another one (`metric_of`).
    `protocols(dataset, recipe)` are those that a run's test split is scored under, with a record for each.
    `experiment(recipe, inputs, seed, device)` is what is trained and scored; `model(recipe, vocabulary, feature_dim)`
    is the bare model that a snapshot is loaded into.
    """

    name: str
    title: str
    citation: str
    folder: Path
    presets: Callable[[str], Mapping[str, Recipe]]
    headline: tuple[str, ...]
    metric: str
    experiment: Callable[[Any, Inputs, int, torch.device], Experiment]
    model: Callable[[Any, Vocabulary, int], nn.Module]
    claims: tuple[Claim, ...]
    protocols: Callable[[str, Any], tuple[str, ...]] = lambda dataset, recipe: ("whole",)

    @cached_property
    def reported(self) -> list[Reported]:
        """The numbers that the paper prints, from its reported.csv."""
        return read_reported(self.folder / "reported.csv")

    def recipe(self, preset: str, dataset: str) -> Recipe:
        """The recipe of a preset on a data set. Raises CapbenchError naming the known presets."""
        presets = self.presets(dataset)
        if preset not in presets:
            raise unknown(f"{self.name} preset", preset, presets)
        return presets[preset]


def metric_of(paper: Paper, recipe: Mapping[str, Any]) -> str:
    """The validation metric that chooses the snapshot of a recipe, by the recipe's fields."""
    return str(recipe.get("metric") or paper.metric)


def papers() -> dict[str, Paper]:
    """Every package under `reproductions` that defines PAPER, by name."""
    return {paper.name: paper for paper in _discover()}


def paper(name: str) -> Paper:
    """One paper; `-` and `_` are the same in its name. Raises CapbenchError naming the known ones."""
    found = papers()
    key = name.replace("-", "_")
    if key not in found:
        raise unknown("paper", name, found)
    return found[key]


def _discover() -> Iterator[Paper]:
    if importlib.util.find_spec("reproductions") is None:
        return
    package = importlib.import_module("reproductions")
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda found: found.name):
        if module.ispkg:
            found = importlib.import_module(f"reproductions.{module.name}")
            if hasattr(found, "PAPER"):
                yield found.PAPER
