"""What the loop fits: a recipe's training, what an experiment is made from, and what it provides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from capbench.data.captions import CaptionDataset
from capbench.data.vocabulary import Vocabulary
from capbench.vision.encoders import Encoder
from capbench.vision.features import Features


@dataclass(frozen=True)
class Training:
    """How a model is fitted. Learning rates are per step, schedules count epochs.

    decay_every: multiply the rate by `decay` after so many epochs; plateau: after so many without a better snapshot;
    patience: stop after so many without one; clip_norm: largest norm of the whole gradient; clip_value: largest
    absolute value of an element; average: how much of the running average of the weights a step keeps, where it is that
    average that is scored and kept (Polyak and Juditsky 1992), 0 for the weights themselves; precision: "auto" computes
    in bf16 where the device has it, "full" in fp32.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: Literal["adam", "sgd", "rmsprop"] = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay_every: int | None = None
    plateau: int | None = None
    decay: float = 0.1
    clip_norm: float | None = None
    clip_value: float | None = None
    patience: int | None = None
    average: float = 0.0
    precision: Literal["auto", "full"] = "auto"


@dataclass(frozen=True)
class Inputs:
    """What an experiment is made from.

    `features` has a row for each image of the whole data set; `start` are the snapshots that a preset with `start_from`
    goes on from, by parameter name: one, or as many as an ensemble has members.
    """

    dataset: CaptionDataset
    encoder: Encoder
    features: Features
    vocabulary: Vocabulary
    start: tuple[Mapping[str, Tensor], ...] = ()
    _encoded: dict[str, list[list[int]]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def encoded(self, split: str) -> list[list[int]]:
        """The captions of a split as word numbers, START to END; made once."""
        if split not in self._encoded:
            tokens = self.dataset.split(split).tokens
            self._encoded[split] = [self.vocabulary.encode(words) for words in tokens]
        return self._encoded[split]


@dataclass(frozen=True)
class Evaluation:
    """Metrics by name, the arrays they were counted from (ranks by query), and why a metric is missing."""

    metrics: Mapping[str, float]
    arrays: Mapping[str, np.ndarray]
    notes: tuple[str, ...] = ()


@runtime_checkable
class Experiment(Protocol):
    """One model of one paper on one data set, as the training loop and the harness see it."""

    @property
    def model(self) -> nn.Module: ...

    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        """The batches of an epoch, as caption indices: a pure function of the seed and the epoch."""

    def loss(self, batch: np.ndarray, epoch: int) -> Tensor:
        """The scalar to be minimised on a batch."""

    def evaluate(self, split: str, protocol: str) -> Evaluation:
        """Scores on a split under a protocol; the model is in evaluation mode and no gradient is kept."""
