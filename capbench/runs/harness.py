"""Paper, preset, data set, encoder and seed in; records out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from capbench.base.errors import CapbenchError, StoppedError
from capbench.base.files import check_writable, locked, remove_remains
from capbench.base.plugins import versions
from capbench.base.processor import computes_bf16
from capbench.base.provenance import provenance
from capbench.base.signals import stop_at_once, stop_requests
from capbench.data.captions import protocol_line
from capbench.evidence.records import Epoch, Result, load_results, save_result
from capbench.metrics.retrieval import scored
from capbench.runs.job import DESCRIPTION, VOCABULARY, Job, describe, description, identity
from capbench.runs.materials import Materials, default_device
from capbench.runs.paper import Paper, metric_of, paper
from capbench.scoring.outputs import remove_saved
from capbench.scoring.records import split_fields
from capbench.training import checkpoint, processes
from capbench.training.experiment import Evaluation, Inputs, Recipe, Training
from capbench.training.loop import TrainingState, train
from capbench.training.machine import ENERGY_OF, peak_memory_bytes, restart_peak_memory

LOCK, SCRATCH = ".lock", "scratch"
LOCK_SECONDS = 5.0
LEFT_OUT = "left out, not decodable: "  # how the note on an image begins

OnJobStep = Callable[[Job, TrainingState, int], None]  # see `capbench.training.loop.train`


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


def run(job: Job, places: Places, materials: Materials, report: OnJobStep, *, fresh: bool = False) -> FinishedRun:
    """Train one job, or resume it, and record its scores on the test split.

    A job that has finished with the same recipe, data and features, and whose records are still there, is not trained
    again. `fresh` trains it in any case, from its beginning. The presets that it starts from are trained first, by
    their own recipes, whatever was set by hand here. Of several processes, all call it; the main one has the folder.

    Raises CapbenchError for bad input, which leaves no folder behind, and where the folder keeps the run of another
    job; StoppedError after a signal.
    """
    owner = paper(job.paper)
    recipe = owner.recipe(job.preset, job.dataset, job.overrides).here()
    if job.seed < 0:
        raise CapbenchError(f"the seed is {job.seed}; give 0 or more")
    folder = places.folder(job)
    with ExitStack() as stack:
        processes.once(lambda: stack.enter_context(claimed(job, places)))
        inputs = processes.main_first(lambda: materials.inputs(job, recipe))
        if recipe.init_from is not None:
            snapshots = (_snapshot(each, places, materials, report) for each in sources(job, recipe))
            inputs = replace(inputs, init=tuple(snapshots))
        inputs = replace(inputs, scratch=folder / SCRATCH)
        wanted = identity(job, recipe, inputs)
        if fresh:
            processes.once(lambda: _clear(folder))
        elif found := processes.once(lambda: _finished(folder, wanted, places)):
            processes.once(lambda: _clear(folder))  # where it was killed just before
            return _finished_run(places, *found, trained=False)
        return _train_and_record(owner, job, recipe, inputs, wanted, places, report)


def sources(job: Job, recipe: Recipe) -> list[Job]:
    """The runs that a run starts from: none, one of its own seed, or the members of an ensemble."""
    if recipe.init_from is None:
        return []
    seeds = range(job.seed * recipe.ensemble_size, (job.seed + 1) * recipe.ensemble_size)
    return [replace(job, preset=recipe.init_from, seed=seed, overrides={}) for seed in seeds]


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
    processes.once(lambda: _clear_results(folder))  # the snapshot is about to be another one
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
    with torch.no_grad(), stop_at_once():  # the checkpoint holds all but this
        evaluations = {protocol: experiment.test(protocol) for protocol in owner.protocols(job.dataset, recipe)}

    def record() -> tuple[list[str], str]:
        for protocol, evaluation in evaluations.items():
            evaluation.finite(f"on test under {protocol}")
        records = []
        for protocol, evaluation in evaluations.items():
            if evaluation.outputs is not None:
                evaluation.outputs.save(folder, "test")
            result = _result(job, recipe, inputs, state, protocol, evaluation, made_by)
            records.append(_recorded(result, evaluation, places).name)
        inputs.vocabulary.save(folder / VOCABULARY)
        described = describe(folder, wanted, inputs.features.array.shape[-1], records)
        _clear(folder)
        return records, described.finished

    with stop_requests() as stop_requested:  # what is scored is recorded, to its end
        recorded = processes.once(record)
        if processes.any_of(stop_requested()):
            raise StoppedError
    return _finished_run(places, *recorded, trained=True)


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
    skipped = [f"{LEFT_OUT}{name}" for name in inputs.left_out]
    split = scored(inputs.dataset.split("test"), protocol)
    command = replace(job, dataset=inputs.dataset.place or job.dataset).command_of(processes.size())
    return Result(
        **asdict(job),
        **split_fields(split),
        protocol=protocol,
        view="file" if inputs.features.imported else recipe.view,
        region_provider=None if inputs.features.imported else recipe.region_provider,
        metrics=dict(evaluation.metrics),
        validation=state.curve[state.best_epoch]["validation"],
        best_epoch=state.best_epoch,
        curve=[Epoch(**entry) for entry in state.curve],
        recipe=asdict(recipe),
        features_fingerprint=inputs.features.fingerprint,
        vocabulary_size=len(inputs.vocabulary),
        processes=processes.size(),
        command=f"{command} --tolerant" if skipped else command,
        notes=[protocol_line(split), *evaluation.notes, *damaged, *skipped, *filter(None, [inputs.features.imported])],
        **made_by,
    )


def _finished_run(places: Places, records: Sequence[str], date: str, *, trained: bool) -> FinishedRun:
    return FinishedRun(tuple(places.records / name for name in records), date, trained)


def _clear_results(folder: Path) -> None:
    """Remove what the folder says of a finished run but its weights."""
    (folder / DESCRIPTION).unlink(missing_ok=True)
    remove_saved(folder, "test")


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
    best = processes.told(lambda: checkpoint.load(places.folder(job) / checkpoint.SNAPSHOT))
    assert best is not None
    return best[0]


def _finished(folder: Path, wanted: Mapping[str, Any], places: Places) -> tuple[tuple[str, ...], str] | None:
    """The records of the finished run of an identity in a folder, and its date.

    None when the run is of another identity, or when a file of it is missing.
    """
    try:
        described = description(folder)
    except CapbenchError:
        return None
    files = [*(places.records / name for name in described.records), folder / checkpoint.SNAPSHOT]
    complete = bool(described.records) and all(path.exists() for path in files)
    if not complete or checkpoint.differences(wanted, described.identity):
        return None
    return described.records, described.finished


def _check_own(folder: Path, job: Job) -> None:
    """Raises CapbenchError where a folder keeps a finished run, or a checkpoint, of another job of its name."""
    try:
        other = description(folder).job
    except CapbenchError:
        saved = checkpoint.identity(folder).get("job")
        other = Job(**saved) if saved else job
    if other != job:
        raise CapbenchError(f"{folder} keeps another run, {other}; give {job} another --runs folder")


@contextmanager
def claimed(job: Job, places: Places) -> Iterator[None]:
    """A run's folder for this process alone, without what a killed one left; folders that stay empty are removed.

    The system releases the lock of a dead process. Raises CapbenchError when another process holds it, when the folder
    keeps the run of another job, or when a folder cannot be written.
    """
    folder = places.folder(job)
    check_writable(places.records)
    check_writable(folder)
    try:
        with locked(folder / LOCK, LOCK_SECONDS, "wait for it, or choose other --runs"):
            _check_own(folder, job)
            remove_remains(folder, age=0.0)
            remove_remains(places.records)
            try:
                yield
            finally:
                if {path.name for path in folder.iterdir()} == {LOCK}:
                    (folder / LOCK).unlink()
    finally:
        for empty in (folder, folder.parent, places.records, places.runs):
            with suppress(OSError):
                empty.rmdir()
