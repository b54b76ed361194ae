"""The one training loop: every paper's model is fitted here.

All that decides a step is a function of (seed, epoch, step) and of what a checkpoint holds, so a run that was killed
and started again makes the same steps as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from capbench.base.errors import CapbenchError
from capbench.evidence.records import Epoch
from capbench.training import checkpoint
from capbench.training.experiment import Experiment, Training
from capbench.training.machine import bf16_where_native, energy_joules, stop_requests


class StoppedError(Exception):
    """A signal asked the run to stop: the step was finished and saved, and the same command goes on from there."""


@dataclass
class State:
    """Where a run stands. `step` counts within the epoch, `steps` from the start.

    `seconds` and `joules` (None where the machine does not tell) are the work of all starts.
    """

    epoch: int = 0
    step: int = 0
    steps: int = 0
    loss: float = 0.0
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    joules: float | None = None
    best: float = -math.inf
    best_epoch: int = -1
    curve: list[dict[str, Any]] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)


def fit(
    experiment: Experiment,
    training: Training,
    metric: str,
    folder: Path,
    identity: Mapping[str, Any],
    seed: int,
    report: Callable[[State, int], None] = lambda state, batches: None,
    warmup: int = 0,
) -> State:
    """Train until the schedule or the patience ends; leave the best snapshot in `folder` and in the model.

    The snapshot is the epoch with the highest validation `metric` (the first of equals). The first `warmup` epochs are
    trained with another loss than the recipe's own, and no snapshot is taken of them. `identity` says what the
    run is (recipe, data, vocabulary): a checkpoint in `folder` is resumed when it says the same, else CapbenchError
    lists the keys that differ. `report` is called after every step with the state and the batches in the epoch.
    Raises CapbenchError on a loss that is not finite, naming the batch, and for a schedule that ends within its
    warm-up; StoppedError after a signal.
    """
    if training.epochs <= warmup:
        raise CapbenchError(f"the recipe has {training.epochs} epochs, all of its warm-up of {warmup}; give it more")
    model = experiment.model
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(training, parameters)
    whole = {**identity, "architecture": {name: list(value.shape) for name, value in model.state_dict().items()}}
    average = _Average(training.ema_decay, parameters)
    state = _resume(folder, whole, model, optimizer, average)
    with stop_requests() as stop_requested:
        while not finished(training, state, warmup):
            work = _Work()
            batches = experiment.batches(state.epoch)
            _set_rate(optimizer, learning_rate(training, state.epoch, state.curve[warmup:], metric))
            model.train()
            while state.step < len(batches):
                torch.manual_seed(step_seed(seed, state.epoch, state.step))
                state.loss += _step(experiment, training, batches[state.step], state, optimizer, parameters)
                state.step, state.steps = state.step + 1, state.steps + 1
                average.add(state.steps)
                report(state, len(batches))
                if stop_requested():
                    work.add_to(state)
                    _save(folder, state, whole, model, optimizer, average)
                    raise StoppedError
            model.eval()
            with torch.no_grad(), average.in_place():
                validation = dict(experiment.evaluate("val", "whole").metrics)
                work.add_to(state)
                if state.epoch >= warmup and validation[metric] > state.best:
                    state.best, state.best_epoch = validation[metric], state.epoch
                    checkpoint.save(folder / "best.safetensors", model.state_dict(), {"epoch": state.epoch})
                _end_epoch(state, optimizer, validation, len(batches))
            _save(folder, state, whole, model, optimizer, average)
            report(state, 0)
    model.load_state_dict(checkpoint.load(folder / "best.safetensors")[0])
    model.eval()
    return state


def step_seed(seed: int, epoch: int, step: int) -> int:
    """The seed of a step's dropout, crops and samples: resuming needs no generator state."""
    return int(np.random.SeedSequence([seed, epoch, step]).generate_state(1)[0])


def learning_rate(training: Training, epoch: int, curve: Sequence[Mapping[str, Any]], metric: str) -> float:
    """The rate of an epoch: a function of the recipe and of the validation curve so far, with no state of its own."""
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


def finished(training: Training, state: State, warmup: int = 0) -> bool:
    """Whether the epochs are used up, or the best snapshot is `patience` epochs old."""
    waited = state.epoch - 1 - max(state.best_epoch, warmup - 1)
    return state.epoch >= training.epochs or (training.patience is not None and waited >= training.patience)


def make_optimizer(training: Training, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of a recipe; fused kernels, which are several times faster on a CPU too."""
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, rate, weight_decay=decay, fused=True)
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=training.momentum, weight_decay=decay, fused=True)
    return torch.optim.RMSprop(parameters, rate, momentum=training.momentum, weight_decay=decay)


def _step(
    experiment: Experiment,
    training: Training,
    batch: np.ndarray,
    state: State,
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
) -> float:
    optimizer.zero_grad(set_to_none=True)
    with bf16_where_native(parameters[0].device, training.precision):
        loss: Tensor = experiment.loss(batch, state.epoch)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise CapbenchError(
            f"the loss is {value} at epoch {state.epoch}, step {state.step}; captions of the batch: {batch.tolist()}. "
            "The last checkpoint and the best snapshot are from before it; try a lower learning rate or precision=full"
        )
    loss.backward()
    if training.clip_norm is not None:
        nn.utils.clip_grad_norm_(parameters, training.clip_norm)
    if training.clip_value is not None:
        nn.utils.clip_grad_value_(parameters, training.clip_value)
    optimizer.step()
    return value


def _end_epoch(state: State, optimizer: torch.optim.Optimizer, validation: dict[str, float], batches: int) -> None:
    entry = Epoch(
        epoch=state.epoch,
        loss=state.loss / batches if batches else None,
        learning_rate=optimizer.param_groups[0]["lr"],
        seconds=state.epoch_seconds,
        validation=validation,
    )
    state.curve.append(entry.model_dump())
    state.epoch, state.step, state.loss, state.epoch_seconds = state.epoch + 1, 0, 0.0, 0.0


class _Average:
    """The running average of the weights, where the recipe asks for one: w <- d w + (1 - d) w_step.

    d rises to `keep` over the first steps, so that the initial weights are forgotten.
    """

    def __init__(self, keep: float, parameters: Sequence[nn.Parameter]) -> None:
        self.keep = keep
        self.parameters = [parameter.detach() for parameter in parameters] if keep else []
        self.weights = [parameter.clone() for parameter in self.parameters]

    def add(self, steps: int) -> None:
        if self.weights:
            torch._foreach_lerp_(self.weights, self.parameters, 1 - min(self.keep, (1 + steps) / (10 + steps)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it, the model has the averaged weights."""
        own = [parameter.clone() for parameter in self.parameters]
        _copy(self.weights, self.parameters)
        try:
            yield
        finally:
            _copy(own, self.parameters)

    def tensors(self) -> dict[str, Tensor]:
        return {f"average.{place}": weight for place, weight in enumerate(self.weights)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        _copy([tensors[name] for name in self.tensors()], self.weights)


def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    for ours, theirs in zip(target, source, strict=True):
        ours.copy_(theirs)


class _Work:
    """Seconds and joules since it was made."""

    def __init__(self) -> None:
        self.started, self.energy = time.monotonic(), energy_joules()

    def add_to(self, state: State) -> None:
        spent, energy = time.monotonic() - self.started, energy_joules()
        state.epoch_seconds += spent
        state.seconds += spent
        if energy is not None and self.energy is not None and energy >= self.energy:
            state.joules = (state.joules or 0.0) + energy - self.energy


def _save(
    folder: Path,
    state: State,
    identity: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: _Average,
) -> None:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    checkpoint.save_step(
        folder,
        state.steps,
        tensors | checkpoint.optimizer_tensors(optimizer) | average.tensors(),
        {"run": asdict(state), "identity": identity},
    )


def _resume(
    folder: Path,
    identity: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: _Average,
) -> State:
    found = checkpoint.load_newest(folder)
    if found is None:
        return State()
    tensors, saved = found
    changed = checkpoint.differences(identity, saved["identity"])
    if changed:
        raise CapbenchError(
            f"{folder} holds a run that is not this one; start anew with --fresh, or restore:\n  "
            + "\n  ".join(changed)
        )
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    checkpoint.restore_optimizer(optimizer, tensors)
    average.restore(tensors)
    return State(**{**saved["run"], "fallbacks": saved["fallbacks"]})


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
