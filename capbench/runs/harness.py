"""Paper, preset, data set, encoder and seed in; records out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.base.files import check_writable
from capbench.base.plugins import versions
from capbench.base.processor import computes_bf16
from capbench.base.provenance import provenance
from capbench.data.captions import CaptionDataset, protocol_line
from capbench.data.datasets import check_trainable, is_published, load_captions, load_dataset
from capbench.data.vocabulary import Vocabulary
from capbench.evidence.records import Epoch, Result, load_results, save_result
from capbench.runs.job import DESCRIPTION, VOCABULARY, Job, describe, description, identity
from capbench.runs.paper import Paper, metric_of, paper
from capbench.scoring.outputs import remove_saved
from capbench.training import checkpoint
from capbench.training.experiment import Evaluation, Inputs, Recipe, Training
from capbench.training.loop import TrainingState, train
from capbench.training.machine import ENERGY_OF, peak_memory_bytes, restart_peak_memory
from capbench.vision.encoders import Encoder
from capbench.vision.features import Features, features
from capbench.vision.imported import check_imported, imported_features
from capbench.vision.networks import IMPORTED

LOCK, SCRATCH = ".lock", "scratch"

OnJobStep = Callable[[Job, TrainingState, int], None]  # see `capbench.training.loop.train`

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA is deterministic only with it, set before its start


@dataclass(frozen=True)
class Places:
    """Where runs keep checkpoints, trained models and records."""

    runs: Path = Path("runs")

    @property
    def records(self) -> Path:
        return self.runs / "records"

    def folder(self, job: Job) -> Path:
        return self.runs / job.paper / job.name


@dataclass(frozen=True)
class FinishedRun:
    """The records of a run, one for each protocol of its data set."""

    records: tuple[Path, ...]
    date: str  # when it finished: UTC, ISO 8601
    trained: bool  # whether it was trained now, or had been finished before


class Materials:
    """Data sets and features, each loaded once for all jobs."""

    def __init__(self, store: Path | None = None) -> None:
        self.store = store
        self._datasets: dict[str, CaptionDataset] = {}
        self._captions: dict[str, CaptionDataset] = {}
        self._features: dict[tuple[str | None, ...], tuple[Encoder, Features]] = {}

    def dataset(self, name: str) -> CaptionDataset:
        """A data set by name; one that was loaded from a folder is known by its own name from then on."""
        return _once(self._datasets, load_dataset, name)

    def captions(self, name: str) -> CaptionDataset:
        """As `dataset`, but the photographs need not be there."""
        return _once(self._captions, load_captions, name)

    def check(self, name: str, encoders: Iterable[str]) -> None:
        """Raise CapbenchError where a data set, or the features imported for it, are missing or nothing to train on."""
        for encoder in encoders:
            if encoder.startswith(IMPORTED):
                check_imported(self.captions(name), encoder, self.store)
            check_trainable((self.captions if encoder.startswith(IMPORTED) else self.dataset)(name))

    def inputs(self, job: Job, recipe: Recipe) -> Inputs:
        """What the experiment of a job is made from. Raises CapbenchError for missing data or an unknown encoder."""
        if job.encoder.startswith(IMPORTED):
            return self._of_imported(job, recipe)
        dataset = self.dataset(job.dataset)
        check_trainable(dataset)
        key = (job.dataset, job.encoder, recipe.output, recipe.view, recipe.region_provider)
        if key not in self._features:
            encoder = Encoder(job.encoder, recipe.output).to(default_device())
            stored = features(dataset, encoder, recipe.view, recipe.region_provider, store=self.store, progress=True)
            self._features[key] = (encoder, stored)
        encoder, stored = self._features[key]
        vocabulary = Vocabulary.build(dataset.split("train").tokens, recipe.min_count, dataset.tokenizer)
        return Inputs(dataset, encoder, stored, vocabulary)

    def _of_imported(self, job: Job, recipe: Recipe) -> Inputs:
        """Raises CapbenchError for a recipe that needs the network, or random crops of the photographs."""
        if recipe.finetune or recipe.view == "RC":
            does = "trains the encoder" if recipe.finetune else "shows it random crops"
            raise CapbenchError(f"{job.preset} {does}, and {job.encoder} are imported features; choose another preset")
        dataset = self.captions(job.dataset)
        check_trainable(dataset)
        stored = imported_features(dataset, job.encoder, recipe.output, self.store)
        if stored.boxes is None:
            dataset = replace(dataset, phrases=None)  # where a phrase is cannot be compared with places unknown
        vocabulary = Vocabulary.build(dataset.split("train").tokens, recipe.min_count, dataset.tokenizer)
        return Inputs(dataset, None, stored, vocabulary)


def _once(known: dict[str, CaptionDataset], load: Callable[[str], CaptionDataset], name: str) -> CaptionDataset:
    if name not in known:
        loaded = load(name)
        known |= {name: loaded, **({loaded.name: loaded} if loaded.place else {})}
    return known[name]


def default_encoder(dataset: str) -> str:
    """The encoder of a data set unless another one is named.

    >>> default_encoder("scenes"), default_encoder("flickr8k")
    ('scenes', 'timm/tf_efficientnet_lite2')
    """
    return "scenes" if dataset == "scenes" else "timm/tf_efficientnet_lite2"


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def run(job: Job, places: Places, materials: Materials, report: OnJobStep, *, fresh: bool = False) -> FinishedRun:
    """Train one job, or resume it, and record its scores on the test split.

    A job that has finished with the same recipe, data and features, and whose records are still there, is not trained
    again. `fresh` trains it in any case, from its beginning. The presets that it starts from are trained first, by
    their own recipes, whatever was set by hand here.

    Raises CapbenchError for bad input, which leaves no folder behind; StoppedError after a signal.
    """
    owner = paper(job.paper)
    recipe = owner.recipe(job.preset, job.dataset, job.overrides).here()
    if job.seed < 0:
        raise CapbenchError(f"the seed is {job.seed}; give 0 or more")
    folder = places.folder(job)
    with claimed(folder, places):
        inputs = materials.inputs(job, recipe)
        if recipe.init_from is not None:
            seeds = range(job.seed * recipe.ensemble_size, (job.seed + 1) * recipe.ensemble_size)
            sources = (replace(job, preset=recipe.init_from, seed=seed, overrides={}) for seed in seeds)
            inputs = replace(inputs, init=tuple(_snapshot(each, places, materials, report) for each in sources))
        inputs = replace(inputs, scratch=folder / SCRATCH)
        wanted = identity(job, recipe, inputs)
        if fresh:
            _clear(folder)
        elif finished := _finished(folder, wanted, places):
            return finished
        return _train_and_record(owner, job, recipe, inputs, wanted, places, report)


def _train_and_record(
    owner: Paper,
    job: Job,
    recipe: Recipe,
    inputs: Inputs,
    wanted: Mapping[str, Any],
    places: Places,
    report: OnJobStep,
) -> FinishedRun:
    device, folder = default_device(), places.folder(job)
    made_by = provenance(device) | {"started": datetime.now(UTC).isoformat()}  # of the code that is about to run
    made_by["versions"] |= versions(owner.entry) | (inputs.encoder.packages if inputs.encoder else {})
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    restart_peak_memory(device)
    experiment = owner.prepare(recipe, inputs, job.seed, device)
    (folder / DESCRIPTION).unlink(missing_ok=True)  # the snapshot is about to be another one
    remove_saved(folder, "test")
    metric, on_step = metric_of(owner, asdict(recipe)), partial(report, job)
    state = train(experiment, recipe.training, metric, folder, wanted, job.seed, on_step, recipe.warmup)
    made_by |= {
        "precision": _precision(recipe.training, device),
        "wall_seconds": state.seconds,
        "energy_joules": state.joules,
        "energy_of": None if state.joules is None else ENERGY_OF,
        "parameters": sum(value.numel() for value in experiment.model.parameters() if value.requires_grad),
        "peak_memory_bytes": peak_memory_bytes(device),  # of training and validation
    }
    records = []
    for protocol in owner.protocols(job.dataset, recipe):
        with torch.no_grad():
            evaluation = experiment.test(protocol)
        if evaluation.outputs is not None:
            evaluation.outputs.save(folder, "test")
        records.append(
            _recorded(_result(job, recipe, inputs, state, protocol, evaluation, made_by), evaluation, places)
        )
    inputs.vocabulary.save(folder / VOCABULARY)
    described = describe(folder, wanted, inputs.features.array.shape[-1], [path.name for path in records])
    _clear(folder)
    return FinishedRun(tuple(records), described.finished, trained=True)


def _recorded(result: Result, evaluation: Evaluation, places: Places) -> Path:
    """The path of a result's record; written unless a run killed just after its end left one of the same training."""
    for record in load_results(places.records, result.paper):
        same_job = (record.variant, record.protocol, record.seed) == (result.variant, result.protocol, result.seed)
        if same_job and record.curve == result.curve:  # with the seconds of each epoch
            return places.records / record.file
    return save_result(result, evaluation.arrays, places.records)


def _result(
    job: Job,
    recipe: Recipe,
    inputs: Inputs,
    state: TrainingState,
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
        view="file" if inputs.features.imported else recipe.view,
        region_provider=None if inputs.features.imported else recipe.region_provider,
        metrics=dict(evaluation.metrics),
        validation=state.curve[state.best_epoch]["validation"],
        best_epoch=state.best_epoch,
        curve=[Epoch(**entry) for entry in state.curve],
        recipe=asdict(recipe),
        dataset_fingerprint=inputs.dataset.fingerprint,
        published=is_published(inputs.dataset),
        images=len(scored.image_index),
        tokenizer=inputs.dataset.metric_tokenizer,
        features_fingerprint=inputs.features.fingerprint,
        vocabulary_size=len(inputs.vocabulary),
        command=replace(job, dataset=inputs.dataset.place or job.dataset).command,
        notes=[protocol_line(scored), *evaluation.notes, *damaged, *skipped, *filter(None, [inputs.features.imported])],
        **made_by,
    )


def _clear(folder: Path) -> None:
    """Remove what a run keeps until it is recorded."""
    checkpoint.clear(folder)
    shutil.rmtree(folder / SCRATCH, ignore_errors=True)


def _precision(training: Training, device: torch.device) -> str:
    """The number format that training computes in on a device."""
    return "bf16" if training.precision == "auto" and computes_bf16(device) else "fp32"


def _snapshot(job: Job, places: Places, materials: Materials, report: OnJobStep) -> Mapping[str, Tensor]:
    """The best weights of another job, which is trained first unless it has finished."""
    run(job, places, materials, report)
    return checkpoint.load(places.folder(job) / checkpoint.SNAPSHOT)[0]


def _finished(folder: Path, wanted: Mapping[str, Any], places: Places) -> FinishedRun | None:
    """The finished run of an identity in a folder; None when it is of another one, or when a file of it is missing."""
    try:
        described = description(folder)
    except CapbenchError:
        return None
    records = tuple(places.records / name for name in described.records)
    complete = bool(records) and all(path.exists() for path in (*records, folder / checkpoint.SNAPSHOT))
    if not complete or checkpoint.differences(wanted, described.identity):
        return None
    return FinishedRun(records, described.finished, trained=False)


@contextmanager
def claimed(folder: Path, places: Places) -> Iterator[None]:
    """A run's folder for this process alone; folders that stay empty are removed.

    The system releases the lock of a dead process. Raises CapbenchError when another process holds it, or when a folder
    cannot be written.
    """
    check_writable(places.records)
    check_writable(folder)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=5)
    except Timeout as error:
        raise CapbenchError(f"another process is training in {folder}; wait for it, or choose other --runs") from error
    try:
        yield
    finally:
        if {path.name for path in folder.iterdir()} == {LOCK}:
            (folder / LOCK).unlink()
        lock.release()
        for empty in (folder, folder.parent, places.records, places.runs):
            with suppress(OSError):
                empty.rmdir()
