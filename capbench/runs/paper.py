"""What every paper provides, and how papers are discovered."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue, TypeAdapter, ValidationError
from torch import nn

from capbench.base import plugins
from capbench.base.errors import CapbenchError, unknown
from capbench.data.vocabulary import Vocabulary
from capbench.evidence.verdicts import Claim, Reported, read_reported
from capbench.runs.recipes import overridden
from capbench.runs.released import PREFIX, Released
from capbench.training.experiment import Experiment, Inputs, Recipe
from capbench.vision.weights import load_state_dict

SOME_DIM = 8  # of features, where a model is made for its shapes alone


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
    released: Callable[[Path, Path], Released] | None = None  # reads a checkpoint of the authors' code, and its words
    entry: EntryPoint | None = field(default=None, repr=False)  # of another package; discovery fills it in

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise CapbenchError(f"{self.folder}: a paper's name has a-z, 0-9 and _ alone, not {self.name!r}")

    @property
    def in_repository(self) -> bool:
        """Whether its folder lies in a checkout, beside the pages; elsewhere they cannot link to it."""
        return self.entry is None and self.folder.parent.name == "reproductions"

    @property
    def place(self) -> str:
        """Its folder, and the package that brings it if that is not capbench."""
        return f"{self.folder}" + (f" of {plugins.place(self.entry)}" if self.entry else "")

    @cached_property
    def reported(self) -> list[Reported]:
        """The numbers that the paper prints, from its reported.csv."""
        return read_reported(self.folder / "reported.csv")

    def recipe(self, preset: str, dataset: str, overrides: Mapping[str, JsonValue] | None = None) -> Recipe:
        """The recipe of a preset on a data set, with some fields set by hand, if any (`capbench.runs.recipes`).

        Raises CapbenchError naming the known presets, for a field or value that cannot be, and for values that do not
        go together, or with the preset that the recipe starts from.

        >>> paper("vsepp").recipe("vse0", "flickr8k").training.epochs
        30
        """
        presets = self.presets(dataset)
        if preset not in presets:
            raise unknown(f"{self.name} preset", preset, presets)
        recipe = overridden(presets[preset], overrides) if overrides else presets[preset]
        if recipe.init_from not in (None, *presets):
            raise unknown(f"{self.name} preset to start from", str(recipe.init_from), presets)
        if overrides:
            source = None if recipe.init_from is None else presets[recipe.init_from]
            recipe.check(source)
            if source is not None and recipe.continues:
                self._check_fits(recipe, source)
        return recipe

    def _check_fits(self, recipe: Recipe, source: Recipe) -> None:
        """Raises CapbenchError where the model of a recipe, or one of its ensemble, is not shaped as another's."""
        shapes = []
        for each in (replace(recipe, ensemble_size=1), source):
            with torch.device("meta"):
                model = self.model(each, Vocabulary((), ()), SOME_DIM)
            shapes.append({name: list(value.shape) for name, value in model.state_dict().items()})
        here, there = shapes
        for name in (*here, *there):
            if here.get(name) != there.get(name):
                ours, theirs = here.get(name, "absent"), there.get(name, "absent")
                fault = f"the model cannot start from {recipe.init_from}: its {name} is {theirs} there, and here {ours}"
                raise CapbenchError(f"{fault}; set another init_from, or nothing that shapes the model")

    def recipe_of(
        self, preset: str, dataset: str, run: Mapping[str, Any], overrides: Mapping[str, JsonValue] | None = None
    ) -> Recipe:
        """The recipe of a run, given its fields: of its preset as it is today, or of a released checkpoint.

        Raises CapbenchError for an unknown preset, and for fields that are none of a recipe's.
        """
        if not preset.startswith(PREFIX):
            return self.recipe(preset, dataset, overrides).as_in(run)
        kind = type(next(iter(self.presets(dataset).values())))
        try:
            return TypeAdapter(kind).validate_python(run)
        except ValidationError as error:
            raise CapbenchError(f"{self.name} {preset}: its recipe cannot be read: {error}") from error

    def prepare(self, recipe: Recipe, inputs: Inputs, seed: int, device: torch.device) -> Experiment:
        """An experiment with a new model, whose initial weights depend on the seed, or are those of `init_from`.

        Raises CapbenchError where those are of another shape.
        """
        torch.manual_seed(seed)
        model: Any = self.model(recipe, inputs.vocabulary, inputs.features.array.shape[-1])
        if recipe.continues:
            members = [model] if recipe.ensemble_size == 1 else model.members
            for member, snapshot in zip(members, inputs.init, strict=True):
                try:
                    load_state_dict(member, dict(snapshot), f"the run of {recipe.init_from}")
                except CapbenchError as error:
                    raise CapbenchError(f"{error}; set another init_from") from error
        return self.experiment(recipe, inputs, model, seed, device)


def metric_of(paper: Paper, recipe: Mapping[str, Any]) -> str:
    """The validation metric that chooses the snapshot of a recipe, given the recipe's fields."""
    return str(recipe.get("metric") or paper.metric)


def papers() -> dict[str, Paper]:
    """The papers of capbench, and those of other packages by their entry points `capbench.papers`, by name.

    A broken package is left out with a warning. Raises CapbenchError for two papers of one name, naming both places,
    and for a copied paper of capbench that still leads to the original.
    """
    known: dict[str, Paper] = {}
    for paper in _discover():
        if paper.name in known:
            places = f"{known[paper.name].place} and {paper.place}"
            raise CapbenchError(f"two papers have the name {paper.name!r}: {places}; rename PAPER in one of them")
        known[paper.name] = paper
    return known


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


def bundled() -> dict[str, Paper]:
    """The papers of capbench alone, by name: for a package that builds on one of them."""
    return {paper.name: paper for paper in _bundled()}


def _discover() -> Iterator[Paper]:
    yield from _bundled()
    for entry in plugins.named(plugins.PAPERS).values():
        if paper := _of_entry(entry):
            yield paper


def _bundled() -> Iterator[Paper]:
    """The papers of capbench: folders of `capbench.papers` where it is installed, of `reproductions` in a checkout."""
    root = next((name for name in ("capbench.papers", "reproductions") if importlib.util.find_spec(name)), None)
    if root is None:
        return
    package = importlib.import_module(root)
    for item in sorted(pkgutil.iter_modules(package.__path__), key=lambda item: item.name):
        if item.ispkg:
            module = importlib.import_module(f"{root}.{item.name}")
            if hasattr(module, "PAPER"):
                _check_own(module.PAPER, root, module.__name__)
                yield module.PAPER


def _check_own(paper: Paper, root: str, package: str) -> None:
    """Raises CapbenchError for a paper whose parts are another paper's: a copy that imports from the original."""
    for part in (paper.presets, paper.model, paper.experiment, paper.protocols):
        module = f"{getattr(part, '__module__', '')}."
        if module.startswith(f"{root}.") and not module.startswith(f"{package}."):
            original = ".".join(module.split(".")[: root.count(".") + 2])
            raise CapbenchError(
                f"{paper.folder} takes {getattr(part, '__qualname__', part)} from {original}, another paper; "
                "let it import its own modules: from .model import ..."
            )


def _of_entry(entry: EntryPoint) -> Paper | None:
    """The paper of an entry point, which names the paper or its module; None, with a warning, for anything else."""
    found = plugins.load(entry)
    if found is None:
        return None
    found = getattr(found, "PAPER", found)
    if not isinstance(found, Paper):
        plugins.pass_over(entry, "it is neither a Paper nor a module with PAPER")
        return None
    return replace(found, entry=entry)
