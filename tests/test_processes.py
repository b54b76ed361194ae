"""Several processes train and score one model as one does; they stop, resume and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from capbench.base.errors import CapbenchError, StoppedError
from capbench.data.scenes import scenes
from capbench.data.vocabulary import Vocabulary
from capbench.evidence.records import Result, load_arrays, load_results
from capbench.runs import materials
from capbench.runs.harness import Places, run
from capbench.runs.job import Job
from capbench.runs.materials import Materials
from capbench.runs.paper import bundled
from capbench.training import checkpoint, processes
from capbench.training.experiment import Evaluation, Inputs, Training
from capbench.training.loop import train
from capbench.training.shares import check_loss, gathered, mean, share_model
from capbench.vision.features import Features
from tests.own_data import draw
from tests.processes import LIMIT, Ended, free_port, together

ROOT = Path(__file__).resolve().parents[1]
OBJECTIVES = (
    *(("vsepp", preset) for preset in ("vse0", "vsepp", "order0", "orderpp", "vsepp-negatives-4-ours")),
    *(("karpathy", preset) for preset in ("brnn", "brnn-ours", "rnn", "rnn-ours")),
    *(("show_and_tell", preset) for preset in ("nic", "nic-ours")),
    *(("show_attend_tell", preset) for preset in ("soft", "hard")),
    *(("translational", preset) for preset in ("lstm", "gru")),
)
SIZES = {"embedding_dim": 6, "hidden_dim": 5, "attention_dim": 4, "word_dim": 5, "dropout": 0.0}
SHAPES = {"vector": (8,), "grid": (4, 8), "regions": (20, 8)}


def value_and_gradients(paper: str, preset: str) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of eleven captions in float64, its gradients, and what the step changed in the model's buffers."""
    owner, dataset = bundled()[paper], replace(scenes(seed=5, train=20, val=1, test=1), phrases=None)
    recipe: Any = owner.presets("scenes")[preset]
    recipe = replace(recipe, **{name: value for name, value in SIZES.items() if hasattr(recipe, name)})
    shape = (len(dataset.images), *SHAPES[recipe.output])
    features = Features(np.random.default_rng(3).random(shape, np.float32) + np.float32(0.1), Path(), "")
    inputs = Inputs(dataset, None, features, Vocabulary.build(dataset.split("train").tokens, 1))
    experiment: Any = owner.prepare(recipe, inputs, 0, torch.device("cpu"))
    model, source = experiment.model.double().train(), experiment.source
    source.stored = source.stored.astype(np.float64)
    source.on_device = torch.from_numpy(source.stored) if source.on_device is not None else None
    share_model(model)
    captions = np.concatenate(experiment.batches(0))
    batch = captions[np.linspace(0, len(captions) - 1, 11).astype(int)]  # of many lengths
    with pytest.MonkeyPatch.context() as patch:  # what hard attention draws depends on the item, not on its place
        patch.setattr(torch, "rand", lambda count, device: torch.zeros(count))
        patch.setattr(torch, "multinomial", lambda weights, count: weights.argmax(-1, keepdim=True))
        share = experiment.loss(processes.part(batch), recipe.warmup)
    check_loss(experiment, experiment.batches(0), recipe.warmup, 0)
    share.backward()
    parameters = dict(model.named_parameters())
    value = processes.reduced(share, list(parameters.values()))
    gradients = {name: each.grad.numpy() for name, each in parameters.items() if each.grad is not None}
    return value, gradients | {name: each.numpy() for name, each in model.named_buffers()}


def all_objectives(_: Path) -> dict[tuple[str, str], tuple[float, dict[str, np.ndarray]]]:
    torch.set_num_threads(1)
    return {case: value_and_gradients(*case) for case in OBJECTIVES}


def returned(ended: list[Ended]) -> list[Any]:
    assert [(each.code, each.raised) for each in ended] == [(0, "")] * len(ended)
    return [each.returned for each in ended]


@pytest.fixture(scope="module")
def of_one() -> dict[tuple[str, str], tuple[float, dict[str, np.ndarray]]]:
    return all_objectives(Path())


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_have_the_loss_and_the_gradients_of_one_for_every_objective(tmp_path, of_one, count):
    for of_process in returned(together(count, all_objectives, tmp_path)):
        for case, (loss, gradients) in of_one.items():
            value, theirs = of_process[case]
            assert value == pytest.approx(loss, rel=1e-9), case
            assert theirs.keys() == gradients.keys(), case
            for name, gradient in gradients.items():
                np.testing.assert_allclose(theirs[name], gradient, rtol=1e-7, atol=1e-9, err_msg=f"{case} {name}")


class Regression:
    """A linear regression with batch norm, and dropout if asked for, whose loss processes can share."""

    def __init__(self, dropout: float = 0.0) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.Dropout(dropout), nn.Linear(16, 1)
        )
        self.x = torch.randn(41, 6, generator=torch.Generator().manual_seed(1))
        self.y = self.x.sum(1, keepdim=True)

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Of eight, and a last one of a single item: fewer than there are processes."""
        order = np.random.default_rng(epoch).permutation(41)
        return np.split(order, [8, 16, 24, 32, 39])

    def loss(self, batch: np.ndarray, epoch: int) -> torch.Tensor:
        return mean((self.model(self.x[batch]) - self.y[batch]).square())

    def validate(self) -> Evaluation:
        errors = processes.mapped(lambda rows: (self.model(self.x[rows]) - self.y[rows]).square().sum(), self.rows)
        return Evaluation({"score": -float(sum(errors))}, {})

    def test(self, protocol: str) -> Evaluation:
        return self.validate()

    rows = (slice(0, 20), slice(20, 30), slice(30, 41))


TRAINING = Training(epochs=3, batch_size=8, learning_rate=0.02, clip_norm=1.0, ema_decay=0.9)


def trained(folder: Path, dropout: float, report: Callable[..., None] = lambda *_: None) -> dict[str, Any]:
    experiment = Regression(dropout)
    state = train(experiment, TRAINING, "score", folder, {}, 0, report)
    weights = {name: value.numpy() for name, value in experiment.model.state_dict().items()}
    losses = [entry["loss"] for entry in state.curve]
    return {"weights": weights, "losses": losses, "scores": [entry["validation"]["score"] for entry in state.curve]}


def plain(folder: Path) -> dict[str, Any]:
    return trained(folder, 0.0)


def random(folder: Path) -> dict[str, Any]:
    return trained(folder, 0.5)


def at_step(step: int, rank: int, number: signal.Signals) -> Callable[..., None]:
    """A report that sends a signal to one process after a step."""

    def report(state: Any, batches: int) -> None:
        if batches and state.steps == step and processes.rank() == rank:
            os.kill(os.getpid(), number)

    return report


def stopped(folder: Path) -> list[int]:
    """Trains until SIGUSR1 reaches the last process after seven steps; the steps that are saved."""
    try:
        trained(folder, 0.5, at_step(7, processes.size() - 1, signal.SIGUSR1))
    except StoppedError:
        found = checkpoint.load_newest(folder)
        assert found is not None
        return found[1]["run"]["steps"]
    raise AssertionError("it went on")


def killed(folder: Path) -> None:
    trained(folder, 0.5, at_step(8, 1, signal.SIGKILL))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    equal = (np.array_equal(one["weights"][name], other["weights"][name]) for name in one["weights"])
    return all(equal) and one["losses"] == other["losses"] and one["scores"] == other["scores"]


def test_a_training_of_three_processes_is_that_of_one_and_equal_in_all(tmp_path):
    one = trained(tmp_path / "one", 0.0)
    several = returned(together(3, plain, tmp_path / "three"))
    assert all(same(several[0], other) for other in several[1:])
    np.testing.assert_allclose(several[0]["losses"], one["losses"], rtol=1e-4)
    np.testing.assert_allclose(several[0]["scores"], one["scores"], rtol=1e-3)
    for name, value in one["weights"].items():
        np.testing.assert_allclose(several[0]["weights"][name], value, rtol=1e-3, atol=1e-4)


def test_a_signal_to_one_process_stops_all_at_the_same_step_and_the_run_resumes_bit_for_bit(tmp_path):
    whole = returned(together(2, random, tmp_path / "whole"))[0]
    assert returned(together(2, stopped, tmp_path / "stopped")) == [7, 7]
    assert same(returned(together(2, random, tmp_path / "stopped"))[0], whole)


def test_a_process_that_is_killed_ends_the_others_within_a_minute_and_leaves_a_whole_checkpoint(tmp_path):
    whole = returned(together(2, random, tmp_path / "whole"))[0]
    started = time.monotonic()
    survivor, victim = together(2, killed, tmp_path / "killed")
    assert time.monotonic() - started < 60
    assert victim.code == -signal.SIGKILL
    assert survivor.code == 1
    assert "CapbenchError: process 0 of 2 has lost another one" in survivor.raised
    assert not [path for path in (tmp_path / "killed").iterdir() if path.name.startswith(".")]
    assert same(returned(together(2, random, tmp_path / "killed"))[0], whole)


def test_a_run_of_two_processes_is_not_resumed_by_three_nor_by_one(tmp_path):
    assert returned(together(2, stopped, tmp_path)) == [7, 7]
    with pytest.raises(CapbenchError, match=r"holds a run of 2 processes, and this one is of 1, .* resume it with 2"):
        random(tmp_path)
    for ended in together(3, random, tmp_path):
        assert "holds a run of 2 processes, and this one is of 3" in ended.raised


class Unshared(Regression):
    def loss(self, batch: np.ndarray, epoch: int) -> torch.Tensor:
        return (self.model(self.x[batch]) - self.y[batch]).square().mean()


def unshared(folder: Path) -> None:
    train(Unshared(), TRAINING, "score", folder, {}, 0)


def test_a_loss_whose_shares_do_not_add_up_is_refused_before_the_first_step(tmp_path):
    for ended in together(2, unshared, tmp_path):
        assert "in one process and" in ended.raised
        assert "write the loss by capbench.training.shares" in ended.raised
    assert not list(tmp_path.glob("checkpoint*"))


class OwnNorm(nn.BatchNorm1d):
    """A batch norm of somebody else."""


def other_norm(folder: Path) -> None:
    share_model(nn.Sequential(OwnNorm(3)))


def items(folder: Path) -> list[list[float]]:
    """Seven items, each noted in a file by the process that computes it; one item, and none."""

    def double(item: int) -> torch.Tensor:
        with (folder / f"of-{processes.rank()}").open("a") as file:
            file.write(f"{item}\n")
        return torch.tensor(2.0 * item, dtype=torch.float64)

    return [[float(each) for each in processes.mapped(double, range(count))] for count in (7, 1, 0)]


def refused(folder: Path) -> None:
    def work() -> None:
        assert processes.main()
        raise CapbenchError("the disk is full")

    processes.once(work)


def quietly_made(folder: Path) -> str:
    """Made by the main process alone, and read by all."""

    def work() -> str:
        path = folder / "made"
        if not path.exists():
            path.write_text(f"by {processes.rank()}")
        return path.read_text()

    return processes.main_first(work)


def assorted(folder: Path) -> tuple[Any, ...]:
    refusals = []
    for work in (refused, other_norm):
        with pytest.raises(CapbenchError) as caught:
            work(folder)
        refusals.append(str(caught.value))
    found = processes.told(lambda: ({"x": torch.arange(3)}, {"from": processes.rank()}))
    assert found is not None
    rows = torch.ones(processes.rank(), 1 + processes.rank(), dtype=torch.bfloat16, requires_grad=True)
    together = gathered(rows)
    (together.sum() * (1 + processes.rank())).backward()
    assert rows.grad is not None
    shared = together.tolist(), rows.grad.tolist()
    return items(folder), refusals, quietly_made(folder), (found[0]["x"].tolist(), found[1]), shared


def test_each_item_is_computed_once_and_what_the_main_process_does_is_known_to_all(tmp_path):
    for rank, (listed, refusals, made, told, shared) in enumerate(returned(together(3, assorted, tmp_path))):
        assert listed == [[0, 2, 4, 6, 8, 10, 12], [0], []]
        assert refusals[0] == "the disk is full"
        assert "OwnNorm" in refusals[1]
        assert (made, told) == ("by 0", ([0, 1, 2], {"from": 0}))
        rows = [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]  # none of the first process, shorter of the second
        assert shared == (rows, [[6.0] * (1 + rank)] * rank)
    done = [int(line) for path in tmp_path.glob("of-*") for line in path.read_text().split()]
    assert sorted(done) == [0, *range(7)]


SMALL = {"embedding_dim": 16, "training.epochs": 2, "training.batch_size": 32}
JOBS = (
    Job("vsepp", "vsepp-ours", "scenes", "scenes", 0, SMALL),
    Job("show_and_tell", "nic-ours", "scenes", "scenes", 0, SMALL | {"hidden_dim": 16, "dropout": 0.0}),
)


def recorded(folder: Path) -> list[bool]:
    """Runs the jobs on a few scenes; whether each was trained."""
    few = scenes(seed=5, train=60, val=15, test=21)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("jars", "captioning"):
            patch.setattr(f"capbench.metrics.{module}.find_java", lambda: None)
        patch.setattr(materials, "load_dataset", lambda name: few)
        patch.setenv("CAPBENCH_CACHE", str(folder.parent / "cache"))
        made = Materials()
        return [run(job, Places(folder), made, lambda *_: None).trained for job in JOBS]


def records(folder: Path) -> dict[str, tuple[Result, dict[str, np.ndarray]]]:
    return {found.paper: (found, load_arrays(found, folder / "records")) for found in load_results(folder / "records")}


def test_the_records_of_two_processes_are_those_of_one(tmp_path):
    assert returned(together(2, recorded, tmp_path / "two")) == [[True, True]] * 2
    assert recorded(tmp_path / "one") == [True, True]
    one, two = records(tmp_path / "one"), records(tmp_path / "two")
    assert one.keys() == two.keys() == {job.paper for job in JOBS}
    for paper, (expected, arrays) in one.items():
        found, theirs = two[paper]
        assert (expected.processes, found.processes) == (1, 2)
        assert found.command == "torchrun --nproc-per-node 2 -m capbench.cli" + expected.command.removeprefix(
            "capbench"
        )
        assert '"processes"' not in (tmp_path / "one" / "records" / expected.file).read_text()
        assert found.metrics.keys() == expected.metrics.keys()
        losses = [[epoch.loss for epoch in each.curve] for each in (found, expected)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        for name, value in expected.metrics.items():
            assert found.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
        for name, values in arrays.items():
            assert theirs[name].shape == values.shape
    assert returned(together(2, recorded, tmp_path / "one")) == [[False, False]] * 2  # finished is finished


def command(folder: Path, *words: str) -> list[str]:
    """A run on twelve pictures, as words after `-m capbench.cli`."""
    fields = ("embedding_dim=16", "training.batch_size=5", *words)
    places = ("--dataset", folder / "data", "--runs", folder / "runs", "--leaderboards", folder / "leaderboards")
    chosen = ("--encoder", "scenes", "--preset", "vsepp-ours", "--seed", "0")
    return ["run", "vsepp", *map(str, places), *chosen, *(word for each in fields for word in ("--set", each))]


def begun(folder: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    environment = {"PYTHONPATH": str(ROOT), "CAPBENCH_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *words], env={**os.environ, **environment, **variables}, **pipes)


def members(folder: Path, *words: str) -> list[subprocess.Popen[str]]:
    """Two processes of one command, with the environment that torchrun gives."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [begun(folder, "-m", "capbench.cli", *words, **common, RANK=str(rank)) for rank in range(2)]


def ends(started: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """The exit code of each process and what it printed; none is left."""
    try:
        printed = [process.communicate(timeout=LIMIT)[0] for process in started]
        return [(process.returncode, text) for process, text in zip(started, printed, strict=True)]
    finally:
        for process in started:
            process.kill()


def test_torchrun_trains_one_model_in_two_processes_and_one_of_them_reports(tmp_path):
    draw(tmp_path / "data")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "capbench.cli")
    ((code, printed),) = ends([begun(tmp_path, *launcher, *command(tmp_path, "training.epochs=2"))])
    assert code == 0, printed
    assert printed.count("epoch   2") == printed.count("leaderboards/vsepp.md") == 1
    ((record, _),) = records(tmp_path / "runs").values()
    assert (record.processes, len(record.curve)) == (2, 2)


def test_a_signal_to_one_process_of_a_command_lets_all_exit_with_75(tmp_path):
    draw(tmp_path / "data")
    started = members(tmp_path, *command(tmp_path, "training.epochs=100000"))
    deadline = time.monotonic() + LIMIT
    while not list(tmp_path.glob("runs/*/*/checkpoint-*")) and time.monotonic() < deadline:
        assert [process.poll() for process in started] == [None, None], ends(started)
        time.sleep(0.1)
    started[1].send_signal(signal.SIGUSR2)
    ended = ends(started)
    assert [code for code, _ in ended] == [75, 75], ended
    assert not list(tmp_path.glob("runs/records/*.json"))


def test_other_commands_than_run_are_refused_to_several_processes(tmp_path):
    for rank, (code, printed) in enumerate(ends(members(tmp_path, "results"))):
        assert code == 2
        assert printed.startswith(f"capbench: process {rank}: several processes can only run a paper together")
