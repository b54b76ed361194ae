"""What is set side by side: an operation at one size, or a step of something with a state, and the ways to do it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from capbench.timing.measure import Call
from capbench.training.machine import bf16_where_native

Run = Callable[..., Tensor | tuple[Tensor, ...]]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
COMPILED = "torch.compile"  # how the name of a compiled rival begins


@dataclass(frozen=True)
class Way:
    """One way to do it. Of a Case, `run` takes the inputs and is timed; of Steps, it makes the call that is timed.

    `scale` is more than 1 where a part is done and the time is multiplied up, which the way's name must say;
    `counted` says whether torch does it and sees its memory; others are timed apart, after those. A way that is
    `optional`, for it needs a library or a device that may be absent, is left out with the reason where it fails, and
    is checked at the timed size alone.
    """

    run: Callable[..., Any]
    ours: bool = False
    scale: float = 1.0
    counted: bool = True
    optional: bool = False


@dataclass(frozen=True)
class Case:
    """An operation at one size. `inputs` makes the timed tensors on a device in a type (whole numbers as they are),
    `small` those of the check in float64 on the CPU. `flop` and `bytes` are what any way must do at least.
    """

    operation: str
    size: str
    numbers: Mapping[str, int]
    dtype: torch.dtype
    flop: float
    bytes: float
    ways: Mapping[str, Way]
    inputs: Callable[[], tuple[Tensor, ...]]
    small: Callable[[], tuple[Tensor, ...]]
    reference: Run
    backward: bool = False

    @property
    def name(self) -> str:
        return f"{self.operation}, {self.size}"


@dataclass(frozen=True)
class Steps:
    """An operation with a state, such as a training step. `check` compares the ways, before anything is timed; a way
    makes what it needs on the device before it gives the call, which does `calls` steps; the time is that of one. The
    compiled ways are not checked. Never replayed in a CUDA graph. `dtype` is what ours multiplies in; a way in another
    says so in its name."""

    operation: str
    size: str
    numbers: Mapping[str, int]
    ways: Mapping[str, Way]
    check: Callable[[], None]
    dtype: torch.dtype = torch.float32
    flop: float = 0.0
    bytes: float = 0.0
    calls: int = 1

    @property
    def name(self) -> str:
        return f"{self.operation}, {self.size}"


def training_dtype(precision: Literal["auto", "full"] = "auto") -> torch.dtype:
    """The type that training multiplies in on the device."""
    native = isinstance(bf16_where_native(DEVICE, precision), torch.autocast)
    return torch.bfloat16 if native else torch.float32


def through_all(function: Callable[..., object], inputs: Sequence[tuple[object, ...]]) -> Call:
    """A call of `function` with each of the inputs, one after the other."""

    def call() -> None:
        for one in inputs:
            function(*one)

    return call


_now = 0.0


def clock() -> float:
    """The time of pytest-benchmark's table: it goes on by the seconds that were measured, and only then."""
    return _now


def advance(seconds: float) -> None:
    """Let `clock` go on."""
    global _now
    _now += seconds


def rows(cases: Sequence[Case | Steps]) -> Any:
    """The parametrisation of a test by case and way."""
    marks = {case.name: pytest.mark.benchmark(group=case.name, timer=clock, warmup=False) for case in cases}
    params = [
        pytest.param(case, way, id=f"{case.name}: {way}", marks=marks[case.name]) for case in cases for way in case.ways
    ]
    return pytest.mark.parametrize(("case", "way"), params)
