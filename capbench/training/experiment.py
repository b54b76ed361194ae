"""What the training loop needs of a paper: its recipe, the inputs of an experiment, and the experiment itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from capbench.base.errors import CapbenchError, unknown
from capbench.base.json_records import LARGEST
from capbench.data.captions import CaptionDataset
from capbench.data.vocabulary import UNKNOWN, Vocabulary
from capbench.vision.encoders import Encoder, Output
from capbench.vision.extraction import View
from capbench.vision.features import Features
from capbench.vision.regions import Provider

Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Training:
    """How a model is trained. Rates are per step, schedules count epochs.

    The types of fields bound what `capbench run --set` takes.
    """

    epochs: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    optimizer: Literal["adam", "sgd", "rmsprop"] = "adam"
    momentum: Share = 0.0
    weight_decay: NonNegativeFloat = 0.0
    rms_decay: Share = 0.99  # of RMSProp's mean square
    rms_epsilon: NonNegativeFloat = 1e-8  # under its root
    rms_centred: bool = False  # whether the square of the mean is taken off the mean square
    lr_step_epochs: PositiveInt | None = None  # multiply the rate by `lr_decay` every so many epochs
    lr_patience: PositiveInt | None = None  # and after so many epochs without a better snapshot
    lr_decay: PositiveFloat = 0.1
    clip_norm: PositiveFloat | None = None  # largest norm of the whole gradient
    clip_value: PositiveFloat | None = None  # largest absolute value of one element of it
    patience: PositiveInt | None = None  # stop after so many epochs without a better snapshot
    ema_decay: Share = 0.0  # of the averaged weights that are scored and kept (Polyak, Juditsky 1992); 0: no average
    precision: Literal["auto", "full"] = "auto"  # auto: bf16 where the device has it; full: fp32


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The frozen hyper-parameters of one preset. Each paper extends it with those of its model."""

    output: Output = "vector"  # what the encoder makes of an image: one vector, a grid of them, or one a region
    view: View = "1C"  # the part of an image that the encoder sees; RC: a new random crop at each training step
    region_provider: Provider | None = None  # where the boxes of regions come from; None: the model sees no regions
    min_count: PositiveInt = 5  # a word is in the vocabulary if it occurs so often in the training captions
    init_from: str | None = None  # the preset whose trained weights this one starts from
    ensemble_size: PositiveInt = 1  # how many models of `init_from`, of consecutive seeds, decode together
    warmup: NonNegativeInt = 0  # first epochs, trained with another loss; they give no snapshot
    metric: str | None = None  # the validation metric that chooses the snapshot; None: the paper's
    finetune: bool = False  # whether the encoder is trained too
    training: Training

    of_files: ClassVar[tuple[str, ...]] = ()  # fields that are None in a preset: files of the machine decide them
    heeded: ClassVar[tuple[str, ...]] = ()  # of ensemble_size, warmup and finetune, those that the paper makes use of

    @property
    def continues(self) -> bool:
        """Whether the model starts with the weights of `init_from`; else the experiment has another use for them."""
        return self.init_from is not None

    def check(self, source: Recipe | None) -> None:
        """Raises CapbenchError for values that do not go together, or with `source`, the recipe of `init_from`."""
        for name in ("ensemble_size", "warmup", "finetune"):
            value, unset = getattr(self, name), getattr(Recipe, name)
            if value != unset and name not in self.heeded:
                raise CapbenchError(f"{name} is {value}, and this paper makes no use of it; leave it at {unset}")
        if self.warmup >= self.training.epochs:
            fault = f"warmup is {self.warmup} of {self.training.epochs} epochs, and no snapshot is left"
            raise CapbenchError(f"{fault}; set training.epochs above warmup")
        if self.finetune and self.view != "RC":
            fault = f"finetune takes random crops, and view is {self.view}"
            raise CapbenchError(f"{fault}; set view to RC, or finetune to false")
        if self.choosers and self.metric not in (None, *self.choosers):
            raise unknown("validation metric", str(self.metric), self.choosers)
        if self.ensemble_size > 1 and source is None:
            fault = f"ensemble_size is {self.ensemble_size}, and init_from names no preset to join"
            raise CapbenchError(f"{fault}; set ensemble_size to 1, or init_from to a preset")
        if source is not None and source.finetune:
            raise CapbenchError(f"{self.init_from} has an encoder of its own; set init_from to one without finetune")
        if source is not None and source.min_count != self.min_count:
            fault = f"min_count is {self.min_count}, and {source.min_count} in {self.init_from}, from which this starts"
            raise CapbenchError(f"{fault}; the words must be the same: leave min_count at {source.min_count}")

    @property
    def choosers(self) -> tuple[str, ...]:
        """The validation metrics that can choose the snapshot, the higher the better; empty where they are not known.

        Some may need data of their own, such as true boxes.
        """
        return ()

    def here(self) -> Recipe:
        """The recipe as it runs on this machine, its `of_files` filled in. Raises CapbenchError without those files."""
        return self

    def as_in(self, run: Mapping[str, Any]) -> Recipe:
        """The recipe with the `of_files` of a run, given the fields of the run's recipe."""
        decided = {name: run[name] for name in self.of_files if getattr(self, name) is None and name in run}
        return replace(self, **decided)


@dataclass(frozen=True)
class Inputs:
    """What an experiment is made from."""

    dataset: CaptionDataset
    encoder: Encoder | None  # None where the features were imported: there is no network
    features: Features  # one row for each image of the whole data set
    vocabulary: Vocabulary
    init: tuple[Mapping[str, Tensor], ...] = ()  # snapshots of `init_from`, one or `ensemble_size`, by parameter name
    skips_unknown: bool = False  # whether captions lose the words outside the vocabulary; else each becomes UNKNOWN
    scratch: Path | None = None  # a folder for unfinished work, kept until the run is recorded
    left_out: tuple[str, ...] = ()  # names of the images that could not be decoded, and are not in `dataset`
    _encoded: dict[str, list[list[int]]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def encoded(self, split: str) -> list[list[int]]:
        """The captions of a split as word numbers, START to END; computed once."""
        if split not in self._encoded:
            captions = [self.vocabulary.encode(words) for words in self.dataset.split(split).tokens]
            if self.skips_unknown:
                captions = [[word for word in caption if word != UNKNOWN] for caption in captions]
            self._encoded[split] = captions
        return self._encoded[split]


@runtime_checkable
class Outputs(Protocol):
    """What a model made of a split, in a form that `capbench score` reads: captions, embeddings or similarities."""

    def save(self, folder: Path, split: str) -> Path:
        """Write a file `<split>-<kind>.<ending>` into a folder; return its path."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model on one split."""

    metrics: Mapping[str, float]
    arrays: Mapping[str, np.ndarray]  # what the metrics were computed from, such as the rank of each query
    notes: tuple[str, ...] = ()  # for instance why a metric is missing
    outputs: Outputs | None = None  # what was scored, where it is kept

    def finite(self, where: str) -> Evaluation:
        """Itself. Raises CapbenchError for a metric that is not finite, or so large that sums of it are not."""
        for name, value in self.metrics.items():
            if not abs(value) <= LARGEST:
                raise CapbenchError(f"{name} is {value} {where}; try a lower learning rate or precision=full")
        return self


@runtime_checkable
class Experiment(Protocol):
    """One model of one paper on one data set, as the training loop and the harness see it."""

    @property
    def model(self) -> nn.Module: ...

    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        """The batches of an epoch, as caption indices: a pure function of the seed and the epoch."""

    def loss(self, batch: np.ndarray, epoch: int) -> Tensor:
        """The scalar to be minimised on a batch.

        Several processes each call it with a part of the batch, and it is a share of the whole batch's
        (`capbench.training.shares`).
        """

    def validate(self) -> Evaluation:
        """Scores on the validation split. The model is in evaluation mode, and no gradient is kept.

        All processes call it, and the scores of the main one count; `capbench.training.processes.mapped` shares work.
        """

    def test(self, protocol: str) -> Evaluation:
        """Scores on the test split under a protocol, as in `validate`."""
