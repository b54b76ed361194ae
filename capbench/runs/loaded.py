"""A finished run, loaded: a trained model ready for pictures and sentences of one's own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from capbench.base.errors import CapbenchError
from capbench.base.json_records import read_record
from capbench.base.progress import Report
from capbench.data.images import PictureFiles
from capbench.data.tokenizers import KARPATHY
from capbench.data.vocabulary import UNKNOWN, Vocabulary
from capbench.evidence.records import Result
from capbench.runs.harness import Places
from capbench.runs.job import DESCRIPTION, VOCABULARY, Description, Job, description
from capbench.runs.materials import encoder_on_device
from capbench.runs.paper import paper
from capbench.training import checkpoint
from capbench.vision.encoders import Encoder
from capbench.vision.features import features
from capbench.vision.networks import IMPORTED
from capbench.vision.regions import Provider, region_boxes
from capbench.vision.weights import load_state_dict


@dataclass(frozen=True)
class Sentence:
    """The words of a sentence as a vocabulary has them."""

    words: tuple[str, ...]
    numbers: list[int]  # START, a number for each word, END
    unknown: tuple[str, ...]  # distinct words outside the vocabulary


@dataclass(frozen=True)
class Trained:
    """A finished run, loaded."""

    job: Job
    recipe: Any  # of the paper's subclass of Recipe
    vocabulary: Vocabulary
    model: nn.Module  # with the weights of its best epoch
    encoder_weights: Mapping[str, Tensor]  # of a fine-tuned encoder, else empty
    metrics: Mapping[str, float] = field(default_factory=dict)  # of its record; empty where that is gone

    def __str__(self) -> str:
        """The run, and a warning if its data are no photographs."""
        return "; ".join(filter(None, (str(self.job), self.warning)))

    @property
    def warning(self) -> str:
        """What its answers on photographs suffer from; empty for a model of photographs."""
        return "trained on scenes: drawn shapes, not photographs" if self.job.dataset == "scenes" else ""

    @cached_property
    def encoder(self) -> Encoder:
        weights = "random" if self.encoder_weights else "auto"
        encoder = encoder_on_device(self.job.encoder, self.recipe.output, weights)
        if self.encoder_weights:
            encoder.load_state_dict(self.encoder_weights)
        return encoder

    @property
    def region_provider(self) -> Provider | None:
        """The provider of the regions that the model sees; None if it sees no regions.

        The true objects of a picture outside a data set are unknown, so the grid stands in for them.
        """
        provider: Provider | None = self.recipe.region_provider
        return "multiscale" if provider == "objects" else provider

    def features(
        self,
        pictures: Sequence[Path],
        *,
        tolerant: bool = False,
        progress: Report | bool = False,
        store: Path | None = None,
    ) -> Float[np.ndarray, "picture ... dim"]:
        """What the model sees of picture files, from the feature store; with `tolerant`, NaN for undecodable files.

        `store` is another folder for the features than the cache's.

        Raises CapbenchError naming an undecodable file unless `tolerant`, and if none can be decoded.
        """
        with warnings.catch_warnings(action="ignore"):  # the caller names the undecodable files
            stored = features(
                PictureFiles(pictures),
                self.encoder,
                self.recipe.view,
                self.region_provider,
                store=store,
                tolerant=tolerant,
                progress=progress,
            )
        return stored.array

    def boxes(self, pictures: Sequence[Path], *, store: Path | None = None) -> Float[Tensor, "picture region 4"]:
        """The regions that the model sees, x0, y0, x1, y1 as fractions of a picture's width and height.

        Raises CapbenchError naming a bad file, and for a model that sees no regions or those of a data set's file.
        """
        if self.region_provider is None:
            raise CapbenchError(f"{self.job} sees no regions of a picture but its {self.recipe.output}")
        return torch.from_numpy(region_boxes(PictureFiles(pictures), self.region_provider, store).array)

    def read(self, text: str) -> Sentence:
        """The words of a sentence. Raises CapbenchError if it has none, or none that the vocabulary has."""
        words = tuple(self.vocabulary.tokenize(text))
        if not words:
            letters = "a letter from a to z" if self.vocabulary.tokenizer == KARPATHY else "a letter"
            raise CapbenchError(
                f"the sentence {text!r} has no word with {letters} or a digit; {self.job} knows no others"
            )
        numbers = self.vocabulary.encode_text(text)
        unknown = dict.fromkeys(word for word, number in zip(words, numbers[1:-1], strict=True) if number == UNKNOWN)
        if len(unknown) == len(set(words)):
            raise CapbenchError(f"{self.job} knows no word of {text!r}; use the words of its data set")
        return Sentence(words, numbers, tuple(unknown))


def load_run(folder: Path) -> Trained:
    """The finished run in a folder. Raises CapbenchError if there is none, or its recipe or vocabulary has changed."""
    described, recipe, vocabulary, model = _built(folder)
    tensors, _ = checkpoint.load(folder / checkpoint.SNAPSHOT)
    prefix = "encoder."
    encoder_weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    own_weights = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
    load_state_dict(model, own_weights, folder / checkpoint.SNAPSHOT)
    metrics = _metrics(folder, described.records)
    return Trained(described.job, recipe, vocabulary, model.eval(), encoder_weights, metrics)


def _built(folder: Path) -> tuple[Description, Any, Vocabulary, nn.Module]:
    """All of a run but its weights: what it says of itself, its recipe, its vocabulary and its new model."""
    described = description(folder)
    job = described.job
    owner = paper(job.paper)
    recipe = owner.recipe_of(job.preset, job.dataset, described.identity["recipe"], job.overrides)
    changed = checkpoint.differences(asdict(recipe), described.identity["recipe"])
    if changed:
        raise CapbenchError(f"{folder} was trained with another recipe; train it again:\n  " + "\n  ".join(changed))
    vocabulary = Vocabulary.load(folder / VOCABULARY)
    if vocabulary.fingerprint != described.identity.get("vocabulary"):
        raise CapbenchError(f"{folder / 'vocabulary.json'} is not the vocabulary of this run; train it again")
    return described, recipe, vocabulary, owner.model(recipe, vocabulary, described.feature_dim)


def _metrics(folder: Path, records: Sequence[str]) -> Mapping[str, float]:
    runs = folder.resolve().parent.parent
    try:
        return read_record(Result, Places(runs).records / records[0]).metrics if records else {}
    except CapbenchError:  # the record is gone or damaged: the model is still whole
        return {}


def finished_runs(runs: Path) -> list[Path]:
    """The folders of finished runs, newest first."""
    folders = (path.parent for path in runs.glob(f"*/*/{DESCRIPTION}"))
    return sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)


class Usable(NamedTuple):
    """A finished run, not yet loaded."""

    folder: Path
    job: Job
    model: nn.Module  # without weights, on the device "meta": it tells what kind of model this is


def usable_runs(runs: Path, *, new_pictures: bool = True) -> tuple[list[Usable], list[str]]:
    """The finished runs that can be used, newest first; and why the others cannot. Loads no weights.

    With `new_pictures`, models of imported features cannot: nothing encodes a picture for them.
    """
    usable, refused = [], []
    for folder in finished_runs(runs):
        try:
            with torch.device("meta"):
                described, *_, model = _built(folder)
            if new_pictures:
                _check_encoder(described.job)
        except CapbenchError as error:
            refused.append(str(error))
        else:
            usable.append(Usable(folder, described.job, model))
    return usable, refused


def _check_encoder(job: Job) -> None:
    """Raises CapbenchError for a model of imported features: nothing could encode a picture for it."""
    if job.encoder.startswith(IMPORTED):
        raise CapbenchError(f"{job} sees imported features: nothing encodes a new picture; take another run")


def _with_encoder(trained: Trained) -> Trained:
    _check_encoder(trained.job)
    return trained


def find_run(run: Path | None, runs: Path, kind: type, what: str, advice: str) -> Trained:
    """The finished run in `run`, or the newest one under `runs`, whose model is a `kind` (a runtime protocol).

    Raises CapbenchError that names `what` was looked for and gives `advice` on how to make one.
    """
    if run is not None:
        trained = _with_encoder(load_run(run))
        if not isinstance(trained.model, kind):
            raise CapbenchError(f"{run} ({trained.job}) is not a trained {what}; choose another run")
        return trained
    refused = []
    for folder in finished_runs(runs):
        try:
            trained = _with_encoder(load_run(folder))
        except CapbenchError as error:
            refused.append(f"\n  {error}")
            continue
        if isinstance(trained.model, kind):
            return trained
    raise CapbenchError(f"no trained {what} under {runs}; make one with: {advice}{''.join(refused)}")
