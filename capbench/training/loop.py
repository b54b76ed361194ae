"""The one training loop: every paper's model is trained here.

All that decides a step is a function of (seed, epoch, step) and of what a checkpoint holds. So a run that was killed
and resumed makes the same steps as one that was not. Of several processes (`capbench.training.processes`) each computes
its share of every batch, and the main one keeps the files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from capbench.base.errors import CapbenchError, StoppedError, out_of_memory, unknown
from capbench.base.signals import stop_requests
from capbench.evidence.records import Epoch
from capbench.training import checkpoint, processes
from capbench.training.experiment import Experiment, Training
from capbench.training.machine import bf16_where_native, energy_joules
from capbench.training.rmsprop import RMSProp
from capbench.training.shares import check_loss, share_model


@dataclass
class TrainingState:
    """Where a run stands."""

    epoch: int = 0
    step: int = 0  # within the epoch
    steps: int = 0  # since the start of the run
    loss: float = 0.0  # sum over the steps of the epoch
    epoch_seconds: float = 0.0
    seconds: float = 0.0  # of all starts of the run
    joules: float | None = None  # of all starts; None where they cannot be counted
    best: float = -math.inf  # validation metric of the snapshot
    best_epoch: int = -1
    curve: list[dict[str, Any]] = field(default_factory=list)  # one Epoch each, as JSON values
    fallbacks: list[str] = field(default_factory=list)  # damaged checkpoints that were passed over


OnStep = Callable[[TrainingState, int], None]


def train(
    experiment: Experiment,
    training: Training,
    metric: str,
    folder: Path,
    identity: Mapping[str, Any],
    seed: int,
    report: OnStep = lambda state, batches: None,
    warmup: int = 0,
) -> TrainingState:
    """Train until the schedule or the patience ends; leave the best snapshot in `folder` and in the model.

    The snapshot is of the epoch with the highest validation `metric`, the first of them in a tie; the `warmup` epochs,
    which are trained with another loss, give none. `identity` says what the run is: a checkpoint in `folder` is resumed
    when it has the same. `report` is called after every step with the state and the number of batches in the epoch, and
    after every validation with 0.

    Raises CapbenchError for a checkpoint of another run, with the keys that differ, or of another number of processes;
    for a schedule that ends within its warm-up; on a loss that is not finite, naming the batch; on one that several
    processes cannot share; where memory runs out. Raises StoppedError after a signal to any process.
    """
    if training.epochs <= warmup:
        raise CapbenchError(f"the recipe has {training.epochs} epochs, all of its warm-up of {warmup}; give it more")
    run = _Run(experiment, training, metric, folder, identity, seed, warmup)
    with stop_requests() as stop_requested, _enough_memory(run.state, training):
        run.check_loss()
        while not finished(training, run.state, warmup):
            run.train_epoch(report, stop_requested)
            report(run.state, 0)
        if processes.any_of(stop_requested()):
            raise StoppedError
    run.load_best()
    return run.state


def step_seed(seed: int, epoch: int, step: int, rank: int = 0) -> int:
    """The seed of a step's dropout, crops and samples in a process: resuming needs no generator state."""
    of_process = [rank] if rank else []
    return int(np.random.SeedSequence([seed, epoch, step, *of_process]).generate_state(1)[0])


def learning_rate(training: Training, epoch: int, curve: Sequence[Mapping[str, Any]], metric: str) -> float:
    """The rate of an epoch, as a function of the recipe and of the validation curve so far."""
    drops = 0 if training.lr_step_epochs is None else epoch // training.lr_step_epochs
    if training.lr_patience is not None:
        best, waited = -math.inf, 0
        for entry in curve:
            waited += 1
            if entry["validation"][metric] > best:
                best, waited = entry["validation"][metric], 0
            elif waited == training.lr_patience:
                drops, waited = drops + 1, 0
    return training.learning_rate * training.lr_decay**drops


def finished(training: Training, state: TrainingState, warmup: int = 0) -> bool:
    """Whether the epochs are used up, or the best snapshot is `patience` epochs old."""
    waited = state.epoch - 1 - max(state.best_epoch, warmup - 1)
    return state.epoch >= training.epochs or (training.patience is not None and waited >= training.patience)


def make_optimizer(training: Training, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of a recipe, with fused kernels where there are any: they are several times faster on a CPU too."""
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, rate, weight_decay=decay, fused=True)
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=training.momentum, weight_decay=decay, fused=True)
    smoothing = training.rms_decay, training.rms_epsilon, training.rms_centred
    return RMSProp(parameters, rate, *smoothing, momentum=training.momentum, weight_decay=decay)


class _Run:
    """One call of `train`: all that its steps and checkpoints need."""

    def __init__(
        self,
        experiment: Experiment,
        training: Training,
        metric: str,
        folder: Path,
        identity: Mapping[str, Any],
        seed: int,
        warmup: int,
    ) -> None:
        self.experiment, self.model, self.training = experiment, experiment.model, training
        self.metric, self.folder, self.seed, self.warmup = metric, folder, seed, warmup
        share_model(self.model)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.device = self.parameters[0].device
        self.optimizer = make_optimizer(training, self.parameters)
        self.ema = AveragedWeights(training.ema_decay, self.parameters)
        architecture = {name: list(value.shape) for name, value in self.model.state_dict().items()}
        together = {"processes": processes.size()} if processes.size() > 1 else {}
        self.identity = {**identity, **together, "architecture": architecture}
        self.state = self._resumed()
        processes.once(self._settle)

    def check_loss(self) -> None:
        """Raises CapbenchError for a loss that the processes of this run cannot share."""
        if processes.size() > 1 and not finished(self.training, self.state, self.warmup):
            check_loss(self.experiment, self.experiment.batches(self.state.epoch), self.state.epoch, self.seed)

    def train_epoch(self, report: OnStep, stop_requested: Callable[[], bool]) -> None:
        """Train what is left of an epoch, validate, and save. Raises StoppedError as soon as a stop is requested."""
        state, work = self.state, _Work(self.device)
        batches = self.experiment.batches(state.epoch)
        rate = learning_rate(self.training, state.epoch, state.curve[self.warmup :], self.metric)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        while state.step < len(batches):
            self._step(batches[state.step])
            report(state, len(batches))
            if processes.any_of(stop_requested()):
                work.add_to(state)
                processes.once(self._save)
                raise StoppedError
        self.model.eval()
        with torch.no_grad(), self.ema.in_place():
            where = (
                f"on validation after epoch {state.epoch}; the last checkpoint and the best snapshot are from before it"
            )
            evaluation = self.experiment.validate()
            validation: dict[str, float] = processes.once(lambda: dict(evaluation.finite(where).metrics))
            work.add_to(state)
            if self.metric not in validation:
                raise unknown("validation metric", self.metric, validation)
            if state.epoch >= self.warmup and validation[self.metric] > state.best:
                state.best, state.best_epoch = validation[self.metric], state.epoch
                processes.once(self._save_snapshot)
            self._end_epoch(rate, validation, len(batches))
        processes.once(self._save)
        processes.once(self._settle)

    def load_best(self) -> None:
        """Put the best snapshot into the model."""
        best = processes.told(lambda: checkpoint.load(self._snapshot))
        assert best is not None
        if (epoch := best[1]["epoch"]) != self.state.best_epoch:
            raise CapbenchError(
                f"{self._snapshot} is of epoch {epoch}, and the best of this run is {self.state.best_epoch}: it went "
                "on from an older checkpoint, and its numbers came out otherwise; start anew with --fresh"
            )
        self.model.load_state_dict(best[0])
        self.model.eval()

    @property
    def _snapshot(self) -> Path:
        return self.folder / checkpoint.SNAPSHOT

    def _step(self, batch: np.ndarray) -> None:
        state, training = self.state, self.training
        self.optimizer.zero_grad(set_to_none=True)
        share = self._share(batch)
        share.backward()
        value = processes.reduced(share, self.parameters)
        if not math.isfinite(value):
            raise CapbenchError(
                f"the loss is {value} at epoch {state.epoch}, step {state.step}; captions of the batch: "
                f"{batch.tolist()}. The last checkpoint and the best snapshot are from before it; try a lower "
                "learning rate or precision=full"
            )
        if training.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, training.clip_norm)
        if training.clip_value is not None:
            nn.utils.clip_grad_value_(self.parameters, training.clip_value)
        self.optimizer.step()
        state.loss, state.step, state.steps = state.loss + value, state.step + 1, state.steps + 1
        self.ema.add(state.steps)

    def _share(self, batch: np.ndarray) -> Tensor:
        """This process's share of the loss of a batch. Too few captions for all are computed by each, as by one."""
        state, copies = self.state, processes.size()
        with processes.alone() if len(batch) < copies else nullcontext():
            torch.manual_seed(step_seed(self.seed, state.epoch, state.step, processes.rank()))
            with bf16_where_native(self.device, self.training.precision):
                loss: Tensor = self.experiment.loss(processes.part(batch), state.epoch)
        return loss / copies if len(batch) < copies else loss

    def _end_epoch(self, rate: float, validation: dict[str, float], batches: int) -> None:
        state = self.state
        loss = state.loss / batches if batches else None
        entry = Epoch(
            epoch=state.epoch, loss=loss, learning_rate=rate, seconds=state.epoch_seconds, validation=validation
        )
        state.curve.append(entry.model_dump())
        state.epoch, state.step, state.loss, state.epoch_seconds = state.epoch + 1, 0, 0.0, 0.0

    def _save_snapshot(self) -> None:
        """Save the best weights aside: the last ones count until a checkpoint says that these are better."""
        checkpoint.save(self.folder / checkpoint.NEXT, self.model.state_dict(), {"epoch": self.state.epoch})

    def _settle(self) -> None:
        """Let the snapshot that is aside be the run's, or forget it, as the newest checkpoint says."""
        aside = self.folder / checkpoint.NEXT
        if not aside.exists():
            return
        if checkpoint.load(aside)[1]["epoch"] == self.state.best_epoch:
            aside.replace(self._snapshot)
        else:
            aside.unlink()

    def _save(self) -> None:
        model = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors = model | checkpoint.optimizer_tensors(self.optimizer) | self.ema.tensors()
        document = {"run": asdict(self.state), "identity": self.identity}
        checkpoint.save_step(self.folder, self.state.steps, tensors, document)

    def _resumed(self) -> TrainingState:
        """The state of the newest checkpoint, whose weights go into the model; a new state without any."""
        newest = processes.told(lambda: checkpoint.load_newest(self.folder))
        if newest is None:
            return TrainingState()
        tensors, saved = newest
        here, there = (identity.get("processes", 1) for identity in (self.identity, saved["identity"]))
        if here != there:
            raise CapbenchError(
                f"{self.folder} holds a run of {there} process{'es' * (there > 1)}, and this one is of {here}, which "
                f"would take other steps; resume it with {there}, or start anew with --fresh"
            )
        changed = checkpoint.differences(self.identity, saved["identity"])
        if changed:
            raise CapbenchError(
                f"{self.folder} holds a run that is not this one; start anew with --fresh, or restore:\n  "
                + "\n  ".join(changed)
            )
        prefix = "model."
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        self.model.load_state_dict(own)
        checkpoint.restore_optimizer(self.optimizer, tensors)
        self.ema.restore(tensors)
        return TrainingState(**{**saved["run"], "fallbacks": [*saved["run"]["fallbacks"], *saved["fallbacks"]]})


@contextmanager
def _enough_memory(state: TrainingState, training: Training) -> Iterator[None]:
    """Turns a lack of memory into a CapbenchError: another batch would be another recipe, so the user decides."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise CapbenchError(
            f"out of memory at epoch {state.epoch}, step {state.step}: {error}. The last checkpoint is from before it. "
            f"Free memory; a smaller batch than {training.batch_size} (--set training.batch_size=N) is another recipe"
        ) from error


class AveragedWeights:
    """The exponential moving average of the weights, where the recipe asks for one: w <- d w + (1 - d) w_step.

    d rises to `decay` over the first steps, so that the initial weights are forgotten.
    """

    def __init__(self, decay: float, parameters: Sequence[nn.Parameter]) -> None:
        self.decay = decay
        self.parameters = [parameter.detach() for parameter in parameters] if decay else []
        self.weights = [parameter.clone() for parameter in self.parameters]

    def add(self, steps: int) -> None:
        if self.weights:
            torch._foreach_lerp_(self.weights, self.parameters, 1 - min(self.decay, (1 + steps) / (10 + steps)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it, the model has the averaged weights."""
        last = [parameter.clone() for parameter in self.parameters]
        _copy(self.weights, self.parameters)
        try:
            yield
        finally:
            _copy(last, self.parameters)

    def tensors(self) -> dict[str, Tensor]:
        return {f"ema.{place}": weight for place, weight in enumerate(self.weights)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        _copy([tensors[name] for name in self.tensors()], self.weights)


def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


class _Work:
    """Seconds and joules since it was made."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.started, self.energy = device, time.monotonic(), energy_joules(device)

    def add_to(self, state: TrainingState) -> None:
        spent, energy = time.monotonic() - self.started, energy_joules(self.device)
        state.epoch_seconds += spent
        state.seconds += spent
        if energy is not None and self.energy is not None and energy >= self.energy:
            state.joules = (state.joules or 0.0) + energy - self.energy
