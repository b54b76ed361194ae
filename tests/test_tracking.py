"""Curves of runs in TensorBoard, W&B and MLflow, read back from what each writes offline."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capbench.base.errors import CapbenchError
from capbench.evidence.records import save_result
from capbench.runs import tracking
from capbench.runs.harness import FinishedRun, Places
from capbench.runs.job import Job
from capbench.runs.tracking import Tracker, Tracking
from capbench.training.loop import TrainingState
from tests.made_up import made_up_record

JOB = Job("vsepp", "vse0", "scenes", "scenes", 0)
BATCHES = 25


@pytest.fixture
def places(tmp_path, monkeypatch) -> Places:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # else it asks for a database or a server
    return Places(tmp_path / "runs")


def steps(state: TrainingState, count: int, follow: Tracking) -> None:
    """Steps whose loss is their number within the epoch, and a validation at its end."""
    for _ in range(count):
        state.step, state.steps, state.loss = state.step + 1, state.steps + 1, state.loss + state.step + 1
        follow.report(JOB, state, BATCHES)
    if state.step == BATCHES:
        state.curve.append({"epoch": state.epoch, "learning_rate": 0.1, "validation": {"rsum": 30.0 + state.epoch}})
        state.epoch, state.step, state.loss = state.epoch + 1, 0, 0.0
        follow.report(JOB, state, 0)


def stopped_and_resumed(tracker: Tracker, places: Places) -> None:
    """Two epochs, stopped after the first 32 steps and resumed, and a record."""
    state, begun = TrainingState(), Tracking((tracker,), places)
    steps(state, BATCHES, begun)
    steps(state, 7, begun)
    begun.close()
    resumed = Tracking((tracker,), places)
    steps(state, BATCHES - 7, resumed)
    path = save_result(made_up_record(protocol="whole", metrics={"rsum": 77.0}), {}, places.records)
    resumed.done(JOB, FinishedRun((path,), "2026-01-01T00:00:00", trained=True))


# The mean number of steps 1 to 10 and 11 to 20. The resumed run counts from step 8, after which it was stopped.
LOSS = [(10, 5.5), (20, 15.5), (43, 13.5)]
VALIDATION = [(25, 30.0), (50, 31.0)]


def test_tensorboard_has_the_curve_of_a_run_that_was_resumed(places):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stopped_and_resumed("tensorboard", places)
    (folder,) = (places.folder(JOB) / "tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    read = {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert read == {
        "loss": LOSS,
        "learning_rate": [(25, pytest.approx(0.1)), (50, pytest.approx(0.1))],
        "validation/rsum": VALIDATION,
        "test/whole/rsum": [(50, 77.0)],
    }


def test_mlflow_has_one_run_with_the_recipe_and_the_curve(places):
    from mlflow import MlflowClient

    stopped_and_resumed("mlflow", places)
    client = MlflowClient()
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments(max_results=10)])
    assert (run.info.run_name, run.info.status) == (JOB.name, "FINISHED")
    assert (run.data.params["preset"], run.data.params["training.optimizer"]) == ("vse0", "adam")
    for name, points in {"loss": LOSS, "validation/rsum": VALIDATION, "test/whole/rsum": [(50, 77.0)]}.items():
        assert [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, name)] == points


def wandb_records(file: Path) -> list[Any]:
    """The records of an offline run, to the last, which its service may write a little after the run has finished."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = list(parsed(file.read_bytes()))
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.2)
    pytest.fail(f"{file} has no end")


def parsed(content: bytes) -> Iterator[Any]:
    """The records of such a file, a log as LevelDB has it: checksum, length, kind, content."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    at = 7  # after the magic number
    assert len(content) < 2**15  # one block
    while at + 7 <= len(content):
        _, length, kind = struct.unpack_from("<IHB", content, at)
        assert kind == 1  # whole
        start, at = at + 7, at + 7 + length
        if at <= len(content):
            yield Record.FromString(content[start:at])


def test_wandb_has_the_curve_offline_under_one_id(places):
    stopped_and_resumed("wandb", places)
    files = sorted(places.folder(JOB).glob("wandb/offline-run-*/run-*.wandb"))
    records = [record for file in files for record in wandb_records(file)]
    runs = {(r.run.run_id, r.run.display_name, r.run.project) for r in records if r.HasField("run")}
    assert [run[1:] for run in runs] == [(JOB.name, "capbench")]
    rows = [r.history for r in records if r.HasField("history")]
    points = [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in row.item} for row in rows]
    assert [(p["_step"], p["loss"]) for p in points if "loss" in p] == LOSS
    assert [(p["_step"], p["validation/rsum"]) for p in points if "validation/rsum" in p] == VALIDATION


def test_a_run_that_starts_anew_begins_another_curve(places):
    for _ in range(2):
        follow = Tracking(("tensorboard",), places)
        steps(TrainingState(), BATCHES, follow)
        follow.close()
    assert len(list((places.folder(JOB) / "tensorboard").iterdir())) == 2


def test_a_tracker_that_fails_is_told_and_costs_nothing(places, monkeypatch):
    class Broken:
        def __init__(self, start: object) -> None: ...

        def add(self, values: object, step: int) -> None:
            raise OSError("no route to host")

        def close(self) -> None:
            raise AssertionError("it was left out")

    monkeypatch.setitem(tracking.CURVES, "mlflow", Broken)
    follow = Tracking(("mlflow", "tensorboard"), places)
    with pytest.warns(UserWarning, match="Broken has failed.*no route to host"):
        steps(TrainingState(), BATCHES, follow)
    follow.close()
    assert list(places.folder(JOB).glob("tensorboard/*/events*"))


def test_a_tracker_that_cannot_begin_is_refused_at_the_first_step_with_what_to_do(places, monkeypatch):
    def offline(start: object) -> None:
        raise RuntimeError("api_key not configured.\nRun wandb login")

    monkeypatch.setitem(tracking.CURVES, "wandb", offline)
    follow = Tracking(("wandb",), places)
    with pytest.raises(CapbenchError, match=r"wandb cannot begin .*not configured\. Run.*or leave out --track wandb"):
        steps(TrainingState(), 1, follow)
    assert not places.folder(JOB).exists()


def test_a_tracker_that_cannot_end_is_told_and_the_others_are_closed(places, monkeypatch):
    closed = []

    class Whole:
        def __init__(self, start: object) -> None: ...

        def add(self, values: object, step: int) -> None: ...

        def close(self) -> None:
            closed.append(self)

    class Broken(Whole):
        def close(self) -> None:
            raise OSError("no route to host")

    monkeypatch.setitem(tracking.CURVES, "wandb", Broken)
    monkeypatch.setitem(tracking.CURVES, "mlflow", Whole)
    follow = Tracking(("wandb", "mlflow"), places)
    steps(TrainingState(), BATCHES, follow)
    with pytest.warns(UserWarning, match=r"Broken has failed.*no route to host"):
        follow.close()
    assert len(closed) == 1


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_made(places, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(CapbenchError, match=r"wandb is not installed; pip install 'capbench\[wandb\]'"):
        Tracking(("wandb",), places)
    assert not places.runs.exists()


def test_without_a_tracker_nothing_is_written(places):
    steps(TrainingState(), BATCHES, Tracking((), places))
    assert not places.runs.exists()
