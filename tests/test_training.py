"""The training loop: exact resume, early stopping, schedules, and the faults it must survive."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from capbench.base.errors import CapbenchError, StoppedError
from capbench.training import checkpoint, loop, machine
from capbench.training.experiment import Evaluation, Training
from capbench.training.loop import finished, learning_rate, make_optimizer, train
from tests.processes import begin

TRAINING = Training(epochs=4, batch_size=8, learning_rate=0.05, lr_step_epochs=2, clip_norm=1.0)


class Regression:
    """A linear regression with dropout: small, and every source of randomness that a real model has."""

    def __init__(self, seed: int = 0, scores: list[float] | None = None) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 1))
        random = torch.Generator().manual_seed(1)
        self.x = torch.randn(40, 6, generator=random)
        self.y = self.x.sum(1, keepdim=True)
        self.seed, self.scores = seed, scores

    def batches(self, epoch):
        order = np.random.default_rng([self.seed, epoch]).permutation(40)
        return np.split(order, 5)

    def loss(self, batch, epoch):
        return (self.model(self.x[batch]) - self.y[batch]).square().mean()

    def validate(self):
        if self.scores is not None:
            return Evaluation({"score": self.scores.pop(0)}, {})
        return Evaluation({"score": -float((self.model(self.x) - self.y).square().mean().detach())}, {})

    def test(self, protocol):
        return self.validate()


def outcome(folder, training=TRAINING, **options):
    experiment = Regression()
    state = train(experiment, training, "score", folder, {"recipe": {"margin": 0.2}}, 0, **options)
    curve = [{name: value for name, value in entry.items() if name != "seconds"} for entry in state.curve]
    return curve, experiment.model.state_dict()


def assert_same(one, other):
    assert one[0] == other[0]
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])


def test_training_learns_and_leaves_the_best_snapshot_in_the_model(tmp_path):
    experiment = Regression()
    state = train(experiment, TRAINING, "score", tmp_path, {}, 0)
    assert state.curve[-1]["loss"] < state.curve[0]["loss"]
    assert float(experiment.validate().metrics["score"]) == max(e["validation"]["score"] for e in state.curve)


def test_the_same_seed_gives_the_same_bits(tmp_path):
    assert_same(outcome(tmp_path / "a"), outcome(tmp_path / "b"))


def stop_after(*steps):
    """A report that sends this process SIGTERM after these steps."""

    def report(state, batches):
        if batches and state.steps in steps:
            os.kill(os.getpid(), signal.SIGTERM)

    return report


@pytest.mark.fault("two stops in one epoch")
def test_a_run_stopped_twice_in_one_epoch_ends_with_the_same_bits(tmp_path):
    whole = outcome(tmp_path / "whole")
    for step in (7, 9):
        with pytest.raises(StoppedError):
            outcome(tmp_path / "stopped", report=stop_after(step))
    assert_same(outcome(tmp_path / "stopped"), whole)


@pytest.mark.parametrize(("centred", "momentum", "weight_decay"), [(False, 0.0, 0.0), (True, 0.9, 0.1)])
def test_rmsprop_follows_its_equations_with_epsilon_under_the_root(centred, momentum, weight_decay):
    options = {"optimizer": "rmsprop", "rms_decay": 0.95, "rms_epsilon": 1e-4, "rms_centred": centred}
    training = replace(TRAINING, learning_rate=1e-2, momentum=momentum, weight_decay=weight_decay, **options)
    parameter, untouched = nn.Parameter(torch.linspace(-1, 1, 5).double()), nn.Parameter(torch.ones(2))
    optimizer = make_optimizer(training, [parameter, untouched])
    w = parameter.detach().numpy().copy()
    v = m = u = np.zeros(5)
    for step in range(6):
        g = np.sin(3 * w + step) + weight_decay * w
        v, m = 0.95 * v + 0.05 * g**2, 0.95 * m + 0.05 * g
        u = momentum * u + g / np.sqrt(v - (m**2 if centred else 0) + 1e-4)
        w = w - 1e-2 * u
        parameter.grad = (3 * parameter.detach() + step).sin()
        optimizer.step()
        assert np.abs(parameter.detach().numpy() - w).max() < 1e-12
    assert torch.equal(untouched.detach(), torch.ones(2))


AVERAGED = replace(TRAINING, ema_decay=0.9)


def test_the_averaged_weights_are_the_running_mean_of_the_steps_and_are_what_is_kept(tmp_path):
    experiment = Regression()
    seen = [[p.detach().double().clone() for p in experiment.model.parameters()]]

    def note(state, batches):
        if batches:
            seen.append([p.detach().double().clone() for p in experiment.model.parameters()])

    train(experiment, replace(AVERAGED, epochs=1), "score", tmp_path, {}, 0, report=note)
    average = seen[0]
    for step, weights in enumerate(seen[1:], start=1):
        keep = min(0.9, (1 + step) / (10 + step))
        average = [keep * old + (1 - keep) * new for old, new in zip(average, weights, strict=True)]
    for ours, expected in zip(experiment.model.parameters(), average, strict=True):
        assert torch.allclose(ours.double(), expected, atol=1e-5)
    assert not torch.allclose(next(iter(experiment.model.parameters())).double(), seen[-1][0], atol=1e-5)


def test_averaged_weights_survive_a_stop_bit_for_bit(tmp_path):
    whole = outcome(tmp_path / "whole", AVERAGED)
    for step in (7, 9):
        with pytest.raises(StoppedError):
            outcome(tmp_path / "stopped", AVERAGED, report=stop_after(step))
    assert_same(outcome(tmp_path / "stopped", AVERAGED), whole)


def test_the_energy_of_the_processor_is_not_taken_for_that_of_a_gpu(monkeypatch, tmp_path):
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("2500000")
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path)
    assert machine.energy_joules(torch.device("cpu")) == 2.5
    assert machine.energy_joules(torch.device("cuda")) is None


@pytest.mark.fault("SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C during a step")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"])
def test_a_signal_finishes_the_step_and_saves(tmp_path, name):
    def report(state, batches):
        if state.steps == 3:
            os.kill(os.getpid(), getattr(signal, name))

    with pytest.raises(StoppedError):
        outcome(tmp_path, report=report)
    found = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert found[1]["run"]["steps"] == 3


@pytest.mark.fault("second Ctrl-C")
def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    def report(state, batches):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        outcome(tmp_path, report=report)


def run_slowly(folder: Path, told: Connection) -> None:
    def report(state, batches):
        told.send(state.steps)
        time.sleep(0.01)

    outcome(folder, report=report)


@pytest.mark.fault("kill -9 of a training at any moment")
def test_a_run_killed_with_dash_nine_at_any_moment_ends_with_the_same_bits(tmp_path):
    whole = outcome(tmp_path / "whole")
    for steps in (3, 8):
        process, heard = begin(run_slowly, tmp_path / "killed")
        for _ in range(steps):
            heard.recv()
        time.sleep(0.004)
        process.kill()
        process.join()
    assert_same(outcome(tmp_path / "killed"), whole)


@pytest.mark.fault("damaged newest checkpoint")
def test_a_damaged_newest_checkpoint_is_recorded_and_the_bits_stay_the_same(tmp_path):
    whole = outcome(tmp_path / "whole")
    with pytest.raises(StoppedError):
        outcome(tmp_path / "hurt", report=stop_after(12))
    newest = max((tmp_path / "hurt").glob("checkpoint-*"))
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.warns(UserWarning, match="falling back"):
        again = outcome(tmp_path / "hurt")
    assert_same(again, whole)


@pytest.mark.fault("damaged newest checkpoint")
def test_a_damaged_checkpoint_is_still_noted_after_another_stop(tmp_path):
    with pytest.raises(StoppedError):
        outcome(tmp_path, report=stop_after(12))
    newest = max(tmp_path.glob("checkpoint-*"))
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.raises(StoppedError), pytest.warns(UserWarning, match="falling back"):
        outcome(tmp_path, report=stop_after(11))
    state = train(Regression(), TRAINING, "score", tmp_path, {"recipe": {"margin": 0.2}}, 0)
    assert state.fallbacks == [newest.name]


@pytest.mark.fault("kill -9 between the best weights and the checkpoint that tells of them")
@pytest.mark.parametrize("told", [True, False])
def test_better_weights_count_once_a_checkpoint_tells_of_them(tmp_path, monkeypatch, told):
    killed = "_settle" if told else "_save"
    original, calls = getattr(loop._Run, killed), []

    def die(run):
        calls.append(killed)
        if len(calls) == (3 if told else 2):  # `_settle` is called at the beginning, too
            raise KeyboardInterrupt
        original(run)

    monkeypatch.setattr(loop._Run, killed, die)
    with pytest.raises(KeyboardInterrupt):
        train(Regression(scores=[1.0, 2.0, 0.5, 0.4]), TRAINING, "score", tmp_path, {}, 0)
    monkeypatch.setattr(loop._Run, killed, original)
    assert checkpoint.load(tmp_path / "best.safetensors")[1] == {"epoch": 0}
    assert checkpoint.load(tmp_path / checkpoint.NEXT)[1] == {"epoch": 1}
    state = train(Regression(scores=[0.6, 0.5, 0.4]), TRAINING, "score", tmp_path, {}, 0)  # epoch 1 is worse this time
    best = 1 if told else 0
    assert (state.best_epoch, checkpoint.load(tmp_path / "best.safetensors")[1]) == (best, {"epoch": best})
    assert not (tmp_path / checkpoint.NEXT).exists()


def test_weights_of_an_epoch_that_is_not_the_best_are_refused(tmp_path):
    with pytest.raises(StoppedError):
        outcome(tmp_path, report=stop_after(12))
    checkpoint.save(tmp_path / "best.safetensors", Regression().model.state_dict(), {"epoch": 7})
    with pytest.raises(CapbenchError, match=r"best\.safetensors is of epoch 7, and the best of this run is \d+"):
        train(Regression(scores=[-1e9, -1e9]), TRAINING, "score", tmp_path, {"recipe": {"margin": 0.2}}, 0)


@pytest.mark.fault("changed recipe at a resume")
def test_resuming_another_recipe_lists_the_changed_keys(tmp_path):
    with pytest.raises(StoppedError):
        outcome(tmp_path, report=stop_after(6))
    with pytest.raises(CapbenchError, match=r"recipe\.margin: 0\.1 here, 0\.2 in the checkpoint"):
        train(Regression(), TRAINING, "score", tmp_path, {"recipe": {"margin": 0.1}}, 0)


@pytest.mark.fault("checkpoint of another architecture")
def test_resuming_another_architecture_names_the_parameter(tmp_path):
    with pytest.raises(StoppedError):
        outcome(tmp_path, report=stop_after(6))
    other = Regression()
    other.model[2] = nn.Linear(16, 2)
    with pytest.raises(CapbenchError, match=r"architecture\.2\.weight: \[2, 16\] here, \[1, 16\] in the checkpoint"):
        train(other, TRAINING, "score", tmp_path, {"recipe": {"margin": 0.2}}, 0)


@pytest.mark.fault("loss that is not finite")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_at_that_step_and_names_the_batch(tmp_path, value):
    class Diverging(Regression):
        def loss(self, batch, epoch):
            return super().loss(batch, epoch) * (value if epoch == 1 else 1)

    experiment = Diverging()
    batch = experiment.batches(1)[0].tolist()
    with pytest.raises(CapbenchError) as caught:
        train(experiment, TRAINING, "score", tmp_path, {}, 0)
    assert "epoch 1, step 0" in str(caught.value)
    assert str(batch) in str(caught.value)
    _, state = checkpoint.load(tmp_path / "best.safetensors")
    assert state == {"epoch": 0}


@pytest.mark.fault("validation metric that is not finite")
@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e308])
def test_a_validation_metric_that_is_not_finite_ends_the_training_and_is_never_the_best(tmp_path, value):
    with pytest.raises(CapbenchError, match=r"score is \S+ on validation after epoch 1; .*try a lower learning rate"):
        train(Regression(scores=[1.0, value]), TRAINING, "score", tmp_path, {}, 0)
    assert checkpoint.load(tmp_path / "best.safetensors")[1] == {"epoch": 0}
    found = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert found[1]["run"]["epoch"] == 1


@pytest.mark.fault("out of memory in training")
def test_a_lack_of_memory_is_an_error_that_leaves_the_batch_to_the_user(tmp_path):
    class Greedy(Regression):
        def loss(self, batch, epoch):
            more = torch.empty(2**60 if epoch == 1 else 1, dtype=torch.uint8)  # a real refusal of the allocator
            return super().loss(batch, epoch) + more.numel() * 0

    with pytest.raises(CapbenchError, match=r"out of memory at epoch 1, step 0: .*a smaller batch than 8") as caught:
        train(Greedy(), TRAINING, "score", tmp_path, {"recipe": {"margin": 0.2}}, 0)
    assert "is another recipe" in str(caught.value)
    assert_same(outcome(tmp_path), outcome(tmp_path / "whole"))


@pytest.mark.fault("signal during the last validation")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2"])
def test_a_signal_during_the_last_validation_is_not_lost(tmp_path, name):
    class Signalled(Regression):
        def validate(self):
            if len(rounds) == 3:
                os.kill(os.getpid(), getattr(signal, name))
            rounds.append(0)
            return super().validate()

    rounds: list[int] = []
    with pytest.raises(StoppedError):
        train(Signalled(), TRAINING, "score", tmp_path, {"recipe": {"margin": 0.2}}, 0)
    assert len(rounds) == 4
    assert_same(outcome(tmp_path, report=never), outcome(tmp_path / "whole"))


def never(state, batches):
    pytest.fail("a step is made anew")


def test_patience_stops_and_the_first_of_equal_snapshots_is_kept(tmp_path):
    training = replace(TRAINING, epochs=20, patience=3)
    state = train(Regression(scores=[1.0, 5.0, 5.0, 4.0, 4.5, 9.0]), training, "score", tmp_path, {}, 0)
    assert (state.best_epoch, state.epoch) == (1, 5)
    assert finished(training, state)


def test_no_snapshot_is_taken_of_the_warm_up(tmp_path):
    state = train(Regression(scores=[9.0, 1.0, 2.0, 1.5]), TRAINING, "score", tmp_path, {}, 0, warmup=1)
    assert state.best_epoch == 2
    assert state.best == 2.0
    assert checkpoint.load(tmp_path / "best.safetensors")[1]["epoch"] == 2


def test_patience_and_the_plateau_count_from_the_end_of_the_warm_up(tmp_path):
    training = replace(TRAINING, epochs=9, patience=2, lr_step_epochs=None, lr_patience=1, lr_decay=0.1)
    state = train(Regression(scores=[9.0, 8.0, 1.0, 0.5, 0.4, 0.3]), training, "score", tmp_path, {}, 0, warmup=2)
    assert state.best_epoch == 2
    assert len(state.curve) == 5
    assert [entry["learning_rate"] for entry in state.curve] == pytest.approx([0.05, 0.05, 0.05, 0.05, 0.005])


def test_a_schedule_that_ends_within_its_warm_up_is_refused(tmp_path):
    with pytest.raises(CapbenchError, match="4 epochs, all of its warm-up"):
        train(Regression(), TRAINING, "score", tmp_path, {}, 0, warmup=4)


def test_the_step_schedule_drops_after_its_epochs():
    rates = [learning_rate(replace(TRAINING, lr_step_epochs=15), epoch, [], "score") for epoch in (0, 14, 15, 29, 30)]
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.005, 0.0005])


def test_the_plateau_schedule_drops_after_epochs_without_a_better_one():
    training = replace(TRAINING, lr_step_epochs=None, lr_patience=2, lr_decay=0.5)
    scores = [1, 2, 2, 1, 3, 1, 1, 1, 1]
    curve = [{"validation": {"score": float(score)}} for score in scores]
    rates = [learning_rate(training, epoch, curve[:epoch], "score") for epoch in range(len(scores) + 1)]
    assert rates == pytest.approx([0.05 / 2**n for n in (0, 0, 0, 0, 1, 1, 1, 2, 2, 3)])


def test_elementwise_clipping_bounds_each_element(tmp_path):
    class OneBatch(Regression):
        def batches(self, epoch):
            return [np.arange(40)]

    experiment = OneBatch()
    before = {name: value.clone() for name, value in experiment.model.state_dict().items()}
    training = Training(epochs=1, batch_size=40, learning_rate=1.0, optimizer="sgd", clip_value=1e-3)
    train(experiment, training, "score", tmp_path, {}, 0)
    moved = [(experiment.model.state_dict()[name] - before[name]).abs().max() for name in before]
    assert 0.999e-3 < max(moved) <= 1.001e-3
