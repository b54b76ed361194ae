"""What jobs are made from: data sets and features, each loaded once, and the device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from capbench.base.errors import CapbenchError
from capbench.data.captions import CaptionDataset
from capbench.data.datasets import check_trainable, load_captions, load_dataset
from capbench.data.images import without_images
from capbench.data.vocabulary import Vocabulary
from capbench.runs.job import Job
from capbench.training import processes
from capbench.training.experiment import Inputs, Recipe
from capbench.vision.encoders import Encoder, Output
from capbench.vision.features import Features, features
from capbench.vision.imported import check_imported, imported_features
from capbench.vision.networks import IMPORTED, Weights

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA is deterministic only with it, set before its start


class Materials:
    """Data sets and features, each loaded once for all jobs."""

    def __init__(self, store: Path | None = None, tolerant: bool = False) -> None:
        self.store, self.tolerant = store, tolerant  # tolerant: leave out the images that cannot be decoded
        self._datasets: dict[str, CaptionDataset] = {}
        self._captions: dict[str, CaptionDataset] = {}
        self._without: dict[tuple[str, bool, tuple[str, ...]], CaptionDataset] = {}
        self._features: dict[tuple[str | None, ...], tuple[CaptionDataset, Encoder, Features]] = {}

    def dataset(self, name: str) -> CaptionDataset:
        """A data set by name; one that was loaded from a folder is known by its own name from then on."""
        return _once(self._datasets, load_dataset, name)

    def captions(self, name: str) -> CaptionDataset:
        """As `dataset`, but the photographs need not be there."""
        return _once(self._captions, load_captions, name)

    def check(self, name: str, encoders: Iterable[str]) -> None:
        """Raises CapbenchError where a data set, or the features imported for it, are missing or cannot be trained on.

        `name` may be a folder; jobs then know the data set by its own name.
        """
        for encoder in encoders:
            dataset = self._trainable(name, encoder)
            if encoder.startswith(IMPORTED):
                check_imported(dataset, encoder, self.store)

    def without(self, job: Job, left_out: tuple[str, ...]) -> CaptionDataset:
        """The data set of a job without some images, made once. Raises CapbenchError as `check`."""
        key = (job.dataset, job.encoder.startswith(IMPORTED), left_out)
        if key not in self._without:
            dataset = self._trainable(job.dataset, job.encoder)
            self._without[key] = without_images(dataset, left_out) if left_out else dataset
        return self._without[key]

    def inputs(self, job: Job, recipe: Recipe) -> Inputs:
        """What the experiment of a job is made from.

        Raises CapbenchError for missing data, an unknown encoder, and a recipe that imported features cannot serve.
        """
        whole = dataset = self._trainable(job.dataset, job.encoder)
        if job.encoder.startswith(IMPORTED):
            encoder, stored = None, self._imported(dataset, job, recipe)
            if stored.boxes is None:
                dataset = replace(dataset, phrases=None)  # where a phrase is cannot be compared with places unknown
        else:
            dataset, encoder, stored = self._computed(dataset, job, recipe)
        vocabulary = Vocabulary.build(dataset.split("train").tokens, recipe.min_count, dataset.tokenizer)
        left_out = tuple(sorted(set(whole.image_names) - set(dataset.image_names)))
        return Inputs(dataset, encoder, stored, vocabulary, left_out=left_out)

    def _trainable(self, name: str, encoder: str) -> CaptionDataset:
        """The data set of jobs with an encoder. Raises CapbenchError where it is missing or cannot be trained on."""
        dataset = self.captions(name) if encoder.startswith(IMPORTED) else self.dataset(name)
        check_trainable(dataset)
        return dataset

    def _computed(self, dataset: CaptionDataset, job: Job, recipe: Recipe) -> tuple[CaptionDataset, Encoder, Features]:
        """The images that have features, the encoder and the features."""
        key = (job.dataset, job.encoder, recipe.output, recipe.view, recipe.region_provider)
        if key not in self._features:
            encoder = encoder_on_device(job.encoder, recipe.output)
            make = partial(features, encoder=encoder, view=recipe.view, region_provider=recipe.region_provider)
            show = processes.main()
            stored = make(dataset, store=self.store, progress=show, tolerant=self.tolerant)
            if stored.skipped:
                dataset = without_images(dataset, stored.skipped)
                check_trainable(dataset)
                stored = make(dataset, store=self.store, progress=show)
            self._features[key] = (dataset, encoder, stored)
        return self._features[key]

    def _imported(self, dataset: CaptionDataset, job: Job, recipe: Recipe) -> Features:
        """Raises CapbenchError for a recipe that needs the network, or random crops of the photographs."""
        if recipe.finetune or recipe.view == "RC":
            does = "trains the encoder" if recipe.finetune else "shows it random crops"
            raise CapbenchError(f"{job.preset} {does}, and {job.encoder} are imported features; choose another preset")
        return imported_features(dataset, job.encoder, recipe.output, self.store)


def default_device() -> torch.device:
    """The GPU that torch finds, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def encoder_on_device(name: str, output: Output = "vector", weights: Weights = "auto") -> Encoder:
    """The encoder, see `Encoder`, on `default_device()`: features of another device have another fingerprint."""
    return Encoder(name, output, weights).to(default_device())


def _once(known: dict[str, CaptionDataset], load: Callable[[str], CaptionDataset], name: str) -> CaptionDataset:
    if name not in known:
        loaded = load(name)
        known |= {name: loaded, **({loaded.name: loaded} if loaded.place else {})}
    return known[name]
