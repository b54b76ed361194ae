"""What every paper provides, and how papers are discovered."""

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
from pydantic import JsonValue
from torch import nn

from capbench.base.errors import unknown
from capbench.data.vocabulary import Vocabulary
from capbench.evidence.verdicts import Claim, Reported, read_reported
from capbench.runs.recipes import overridden
from capbench.training.experiment import Experiment, Inputs, Recipe


@dataclass(frozen=True)
class Paper:
    """A reproduction: its presets, its models and experiments, and what the paper reports and claims.

    `model` and `experiment` get recipes of the paper's own subclass of Recipe.
    """

    name: str
    title: str
    citation: str
    folder: Path  # of the package, with its reported.csv
    presets: Callable[[str], Mapping[str, Recipe]]  # data set -> recipes by name, in the order of tables
    headline: tuple[str, ...]  # presets of a plain `capbench run`
    metric: str  # validation metric that chooses the snapshot, the higher the better; a recipe may name another one
    model: Callable[[Any, Vocabulary, int], nn.Module]  # recipe, vocabulary, feature dimension -> model
    experiment: Callable[[Any, Inputs, Any, int, torch.device], Experiment]  # recipe, inputs, model, seed, device
    claims: tuple[Claim, ...]
    protocols: Callable[[str, Any], tuple[str, ...]] = lambda dataset, recipe: ("whole",)  # of the test split

    @cached_property
    def reported(self) -> list[Reported]:
        """The numbers that the paper prints, from its reported.csv."""
        return read_reported(self.folder / "reported.csv")

    def recipe(self, preset: str, dataset: str, overrides: Mapping[str, JsonValue] | None = None) -> Recipe:
        """The recipe of a preset on a data set, with some fields set by hand, if any (`capbench.runs.recipes`).

        Raises CapbenchError naming the known presets, and for a field or value that cannot be.

        >>> paper("vsepp").recipe("vse0", "flickr8k").training.epochs
        30
        """
        presets = self.presets(dataset)
        if preset not in presets:
            raise unknown(f"{self.name} preset", preset, presets)
        recipe = overridden(presets[preset], overrides) if overrides else presets[preset]
        if recipe.init_from not in (None, *presets):
            raise unknown(f"{self.name} preset to start from", str(recipe.init_from), presets)
        return recipe

    def prepare(self, recipe: Recipe, inputs: Inputs, seed: int, device: torch.device) -> Experiment:
        """An experiment with a new model, whose initial weights depend on the seed alone."""
        torch.manual_seed(seed)
        model = self.model(recipe, inputs.vocabulary, inputs.features.array.shape[-1])
        return self.experiment(recipe, inputs, model, seed, device)


def metric_of(paper: Paper, recipe: Mapping[str, Any]) -> str:
    """The validation metric that chooses the snapshot of a recipe, given the recipe's fields."""
    return str(recipe.get("metric") or paper.metric)


def papers() -> dict[str, Paper]:
    """Every package under `reproductions` that defines PAPER, by name."""
    return {paper.name: paper for paper in _discover()}


def paper(name: str) -> Paper:
    """One paper; `-` and `_` are the same in its name. Raises CapbenchError naming the known papers.

    >>> paper("show-and-tell").name
    'show_and_tell'
    """
    known = papers()
    key = name.replace("-", "_")
    if key not in known:
        raise unknown("paper", name, known)
    return known[key]


def _discover() -> Iterator[Paper]:
    if importlib.util.find_spec("reproductions") is None:
        return
    package = importlib.import_module("reproductions")
    for entry in sorted(pkgutil.iter_modules(package.__path__), key=lambda entry: entry.name):
        if entry.ispkg:
            module = importlib.import_module(f"reproductions.{entry.name}")
            if hasattr(module, "PAPER"):
                yield module.PAPER
