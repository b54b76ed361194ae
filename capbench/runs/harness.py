"""Paper x preset x data set x encoder x seed -> Result."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.base.files import atomic_write, check_writable
from capbench.base.processor import computes_bf16
from capbench.base.provenance import provenance
from capbench.data.captions import CaptionDataset, protocol_line
from capbench.data.datasets import is_published, load_dataset
from capbench.data.vocabulary import Vocabulary
from capbench.evidence.records import Epoch, Result, save_result
from capbench.runs.job import Job
from capbench.runs.loaded import load_run
from capbench.runs.paper import Paper, metric_of, paper
from capbench.training import checkpoint
from capbench.training.experiment import Evaluation, Inputs, Recipe, Training
from capbench.training.loop import State, fit
from capbench.training.machine import peak_memory_bytes, restart_peak_memory
from capbench.vision.encoders import Encoder
from capbench.vision.features import Features, features
from capbench.vision.weights import hash_tensors

ENCODERS = {"scenes": "scenes"}
DEFAULT_ENCODER = "mobilenet_v2"

Report = Callable[["Job", State, int], None]

os.environ.setdefault(
    "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
)  # read at the first product; CUDA needs it to be deterministic


@dataclass(frozen=True)
class Places:
    """Where runs keep their checkpoints and snapshots, and where records go."""

    runs: Path = Path("runs")
    leaderboards: Path = Path("leaderboards")

    @property
    def results(self) -> Path:
        return self.leaderboards / "results"

    def folder(self, job: Job) -> Path:
        return self.runs / job.paper / job.name


class Materials:
    """Data sets and features, each made once for all the jobs that need it."""

    def __init__(self, store: Path | None = None) -> None:
        self.store = store
        self._datasets: dict[str, CaptionDataset] = {}
        self._features: dict[tuple[str, ...], tuple[Encoder, Features]] = {}

    def dataset(self, name: str) -> CaptionDataset:
        if name not in self._datasets:
            self._datasets[name] = load_dataset(name)
        return self._datasets[name]

    def inputs(self, job: Job, recipe: Recipe) -> Inputs:
        dataset = self.dataset(job.dataset)
        key = (job.dataset, job.encoder, recipe.output, recipe.stored_view)
        if key not in self._features:
            encoder = Encoder(job.encoder, recipe.output).to(default_device())
            self._features[key] = (encoder, features(dataset, encoder, recipe.stored_view, self.store, progress=True))
        encoder, stored = self._features[key]
        vocabulary = Vocabulary.build(dataset.split("train").tokens, recipe.min_count)
        return Inputs(dataset, encoder, stored, vocabulary)


def run(job: Job, places: Places, materials: Materials, report: Report, *, fresh: bool = False) -> list[Path]:
    """Train, or go on with, one job; write a record for each protocol of its data set; return their paths.

    A preset that starts from another one trains that first. `fresh` throws the checkpoints of an unfinished run away.
    Raises CapbenchError for bad input, training.StoppedError after a signal.
    """
    owner = paper(job.paper)
    recipe = owner.recipe(job.preset, job.dataset)
    folder = places.folder(job)
    check_writable(places.results)
    check_writable(folder)
    with _locked(folder):
        if fresh:
            checkpoint.clear(folder)
        inputs = materials.inputs(job, recipe)
        if recipe.init_from is not None:
            count = recipe.ensemble_size
            jobs = [replace(job, preset=recipe.init_from, seed=job.seed * count + n) for n in range(count)]
            inputs = replace(inputs, init=tuple(_snapshot(first, inputs, places, materials, report) for first in jobs))
        return _train_and_record(owner, job, recipe, inputs, places, report)


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _train_and_record(
    owner: Paper, job: Job, recipe: Recipe, inputs: Inputs, places: Places, report: Report
) -> list[Path]:
    device, folder = default_device(), places.folder(job)
    origin = provenance(device) | {"started": datetime.now(UTC).isoformat()}  # of the code that is about to run
    origin["precision"] = _precision(recipe.training, device)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    restart_peak_memory(device)
    experiment = owner.experiment(recipe, inputs, job.seed, device)
    identity = {
        "recipe": asdict(recipe),
        "seed": job.seed,
        **_made_from(inputs),
    }
    if inputs.init:
        identity["init"] = [hash_tensors(dict(snapshot)) for snapshot in inputs.init]
    (folder / "run.json").unlink(missing_ok=True)  # the snapshot is about to be another one
    metric = metric_of(owner, asdict(recipe))
    reported = partial(report, job)
    state = fit(experiment, recipe.training, metric, folder, identity, job.seed, reported, recipe.warmup)
    parameters = sum(value.numel() for value in experiment.model.parameters() if value.requires_grad)
    made_by = origin | {"wall_seconds": state.seconds, "energy_joules": state.joules, "parameters": parameters}
    made_by["peak_memory_bytes"] = peak_memory_bytes(device)  # training and validation
    paths = []
    for protocol in owner.protocols(job.dataset, recipe):
        with torch.no_grad():
            evaluation = experiment.evaluate("test", protocol)
        result = _result(job, recipe, inputs, state, protocol, evaluation, made_by)
        paths.append(save_result(result, evaluation.arrays, places.results))
    inputs.vocabulary.save(folder / "vocabulary.json")
    description = {
        "job": asdict(job),
        "recipe": asdict(recipe),
        "vocabulary": inputs.vocabulary.fingerprint,
        "made_from": _made_from(inputs),
        "feature_dim": inputs.features.array.shape[-1],
    }
    atomic_write(folder / "run.json", json.dumps(description, indent=1).encode())
    checkpoint.clear(folder)
    return paths


def _result(
    job: Job,
    recipe: Recipe,
    inputs: Inputs,
    state: State,
    protocol: str,
    evaluation: Evaluation,
    made_by: Mapping[str, Any],
) -> Result:
    damaged = [f"resumed past a damaged checkpoint: {name}" for name in state.fallbacks]
    skipped = [f"left out, not decodable: {name}" for name in inputs.features.skipped]
    scored = inputs.dataset.split("test")
    return Result(
        **asdict(job),
        split=scored.name,
        protocol=protocol,
        view=recipe.view,
        region_provider=recipe.region_provider,
        metrics=dict(evaluation.metrics),
        validation=state.curve[state.best_epoch]["validation"],
        best_epoch=state.best_epoch,
        curve=[Epoch(**entry) for entry in state.curve],
        recipe=asdict(recipe),
        dataset_fingerprint=inputs.dataset.fingerprint,
        published=is_published(inputs.dataset),
        images=len(scored.image_index),
        features_fingerprint=inputs.features.fingerprint,
        vocabulary_size=len(inputs.vocabulary),
        command=job.command,
        notes=[protocol_line(scored), *evaluation.notes, *damaged, *skipped],
        **made_by,
    )


def _precision(training: Training, device: torch.device) -> str:
    """What training computes in there."""
    return "bf16" if training.precision == "auto" and computes_bf16(device) else "fp32"


def _made_from(inputs: Inputs) -> dict[str, str]:
    return {
        "dataset": inputs.dataset.fingerprint,
        "features": inputs.features.fingerprint,
        "vocabulary": inputs.vocabulary.fingerprint,
    }


def _snapshot(job: Job, inputs: Inputs, places: Places, materials: Materials, report: Report) -> Mapping[str, Tensor]:
    """The best snapshot of another preset with the same data, encoder and seed; it is trained first if need be."""
    folder = places.folder(job)
    if not (folder / "run.json").exists():
        run(job, places, materials, report)
    if load_run(folder).made_from != _made_from(inputs):  # load_run refuses a snapshot of another recipe
        raise CapbenchError(f"{folder} was trained on other data or features; train it again: {job.command}")
    return checkpoint.load(folder / "best.safetensors")[0]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time in a run's folder; the lock of a dead process is released by the system."""
    try:
        with FileLock(folder / ".lock", timeout=5):
            yield
    except Timeout as error:
        raise CapbenchError(f"another process is training in {folder}; wait for it, or choose other --runs") from error
