"""The curves of runs in TensorBoard, Weights & Biases and MLflow, as the training loop reports them.

A run that was stopped goes on in the curve that it began; one that starts anew begins another. TensorBoard's lie in the
run's folder; their own settings say where MLflow and W&B keep theirs (MLFLOW_TRACKING_URI, WANDB_MODE=offline).
"""

from __future__ import annotations

import json
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from capbench.base.errors import CapbenchError
from capbench.base.files import atomic_write
from capbench.base.json_records import read_record
from capbench.evidence.records import Result
from capbench.runs.harness import FinishedRun, Places
from capbench.runs.job import Job
from capbench.runs.paper import paper
from capbench.training.loop import TrainingState

Tracker = Literal["tensorboard", "wandb", "mlflow"]

CURVE = "curve.json"  # in a run's folder: the name of its curve
EVERY = 10  # steps whose mean loss makes a point
PROJECT = "capbench"


@runtime_checkable
class Curve(Protocol):
    """One run in one tracker."""

    def add(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Start:
    """What a curve begins with."""

    job: Job
    folder: Path  # of the run
    name: str  # of the curve, unique
    step: int  # the last one of the run so far; above 0 when it was resumed

    @property
    def settings(self) -> dict[str, Any]:
        """The job and its recipe, nested fields under dotted names."""
        recipe = paper(self.job.paper).recipe(self.job.preset, self.job.dataset, self.job.overrides)
        return asdict(self.job) | dict(_dotted(asdict(recipe)))


class TensorBoard:
    """Event files under the run's folder: `tensorboard --logdir runs`."""

    def __init__(self, start: Start) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = start.folder / "tensorboard" / start.name
        self.writer = SummaryWriter(folder, purge_step=start.step + 1 if start.step else None)
        if not start.step:
            self.writer.add_text("recipe", "\n".join(f"    {key}: {value}" for key, value in start.settings.items()))

    def add(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of the project `capbench`."""

    def __init__(self, start: Start) -> None:
        import wandb

        self.run = wandb.init(
            project=PROJECT, group=start.job.paper, name=start.job.name, id=start.name, resume="allow",
            dir=start.folder, config=start.settings,
        )  # fmt: skip

    def add(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of the experiment `capbench`."""

    def __init__(self, start: Start) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient()
        known = self.client.get_experiment_by_name(PROJECT)
        experiment = known.experiment_id if known else self.client.create_experiment(PROJECT)
        begun = self.client.search_runs([experiment], f"tags.curve = '{start.name}'")
        run = begun[0] if begun else self.client.create_run(
            experiment, run_name=start.job.name, tags={"curve": start.name}
        )  # fmt: skip
        self.run = run.info.run_id
        if not begun:
            for key, value in start.settings.items():
                self.client.log_param(self.run, key, value)

    def add(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run, name, value, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.run)


CURVES: Mapping[Tracker, Callable[[Start], Curve]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


@dataclass
class _Open:
    """A run's curves, and the last point of its loss."""

    curves: list[Curve]
    steps: int  # since the start of the run
    step: int  # within the epoch
    loss: float  # sum over the steps of the epoch

    def add(self, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        self._each(lambda curve: curve.add(values, self.steps))

    def close(self) -> None:
        self._each(lambda curve: curve.close())

    def _each(self, act: Callable[[Curve], None]) -> None:
        """Do something with each curve. A tracker that fails is left out from then on: it never costs the run."""
        for curve in tuple(self.curves):
            try:
                act(curve)
            except Exception as error:  # whatever a server or a disk may answer
                self.curves.remove(curve)
                warnings.warn(f"{type(curve).__name__} has failed and gets no more of this run: {error}", stacklevel=3)

    def move(self, state: TrainingState) -> None:
        self.steps, self.step, self.loss = state.steps, state.step, state.loss


@dataclass
class Tracking:
    """Passes on to trackers what runs report.

    Raises CapbenchError for a tracker that is not installed, and at a run's first step for one that cannot begin.
    """

    trackers: Sequence[Tracker]
    places: Places
    _open: dict[Job, _Open] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for tracker in self.trackers:
            if find_spec(tracker) is None:
                raise CapbenchError(f"{tracker} is not installed; pip install 'capbench[{tracker}]'")

    def report(self, job: Job, state: TrainingState, batches: int) -> None:
        """Called after each step with the batches of an epoch, and after each validation with 0."""
        if not self.trackers:
            return
        run = self._open.get(job) or self._begin(job, state)
        if not batches:
            run.move(state)
            epoch = state.curve[-1]
            values = {f"validation/{name}": value for name, value in epoch["validation"].items()}
            run.add({**values, "learning_rate": epoch["learning_rate"]})
        elif state.step - run.step >= EVERY:
            mean = (state.loss - run.loss) / (state.step - run.step)
            run.move(state)
            run.add({"loss": mean})

    def done(self, job: Job, finished: FinishedRun) -> None:
        """Add the scores on the test split, named after protocol and metric, and close what is open."""
        if run := self._open.get(job):
            results = [read_record(Result, path) for path in finished.records]
            values = {f"test/{r.protocol}/{name}": value for r in results for name, value in r.metrics.items()}
            run.add(values)
        self.close()

    def close(self) -> None:
        """Close every curve, so that nothing of it is lost."""
        for run in self._open.values():
            run.close()
        self._open.clear()

    def _begin(self, job: Job, state: TrainingState) -> _Open:
        folder, resumed = self.places.folder(job), state.steps > 1 or bool(state.curve)
        name = (_name_of(folder) if resumed else None) or uuid.uuid4().hex[:12]
        start = Start(job, folder, name, state.steps - 1 if resumed else 0)
        self._open[job] = run = _Open([], state.steps, *_so_far(state))
        for tracker in self.trackers:
            try:
                run.curves.append(CURVES[tracker](start))
            except Exception as error:  # of its settings, its server or its folder
                fault = " ".join(str(error).split())
                advice = f"correct the settings of {tracker}, or leave out --track {tracker}"
                raise CapbenchError(f"{tracker} cannot begin the curve of {job}: {fault}; {advice}") from error
        atomic_write(folder / CURVE, json.dumps({"name": name}).encode())
        return run


def _so_far(state: TrainingState) -> tuple[int, float]:
    """The step and the loss that the first point of a curve counts from: those before a run's first step."""
    return (0, 0.0) if state.step == 1 else (state.step, state.loss)


def _name_of(folder: Path) -> str | None:
    """The name of the curve that a run has begun; None without a readable one."""
    try:
        return str(json.loads((folder / CURVE).read_text())["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _dotted(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", each) for inner, each in _dotted(value))
        else:
            yield name, value
