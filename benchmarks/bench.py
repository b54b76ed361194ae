"""What is compared: the variants of an operation at one size, or of a step with a state."""

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
COMPILED = "torch.compile"  # the prefix of a compiled baseline's name


@dataclass(frozen=True)
class Variant:
    """One implementation. A Case times `run` on its inputs; Steps time the call that `run` returns."""

    run: Callable[..., Any]
    ours: bool = False
    scale: float = 1.0  # more than 1: `run` does a part, and its time is multiplied by this; the name must say so
    counted: bool = True  # torch does it and sees its memory; the others are timed apart, after these
    optional: bool = False  # needs a library that may be absent: left out if it fails, checked at the timed size alone


@dataclass(frozen=True)
class Case:
    """An operation at one size."""

    operation: str
    size: str  # for a reader
    numbers: Mapping[str, int]  # the same for programs
    dtype: torch.dtype
    flop: float  # the least that any variant must do
    bytes: float  # the least that any variant must read and write
    variants: Mapping[str, Variant]
    inputs: Callable[[], tuple[Tensor, ...]]  # the timed tensors, on the device
    small: Callable[[], tuple[Tensor, ...]]  # those of the check, in float64 on the CPU
    reference: Run
    backward: bool = False  # whether the gradient is part of the operation

    @property
    def name(self) -> str:
        return f"{self.operation}, {self.size}"


@dataclass(frozen=True)
class Steps:
    """An operation with a state, such as a training step. Never replayed in a CUDA graph."""

    operation: str
    size: str
    numbers: Mapping[str, int]
    variants: Mapping[str, Variant]
    check: Callable[[], None]  # compares the variants, except compiled ones, before anything is timed
    dtype: torch.dtype = torch.float32  # that ours multiplies in; a variant in another type names it
    flop: float = 0.0
    bytes: float = 0.0
    calls: int = 1  # steps in a call; the time is that of one

    @property
    def name(self) -> str:
        return f"{self.operation}, {self.size}"


def training_dtype(precision: Literal["auto", "full"] = "auto") -> torch.dtype:
    """The type that training multiplies in on this device."""
    native = isinstance(bf16_where_native(DEVICE, precision), torch.autocast)
    return torch.bfloat16 if native else torch.float32


def through_all(function: Callable[..., object], inputs: Sequence[tuple[object, ...]]) -> Call:
    """A call of `function` on each of the inputs in turn."""

    def call() -> None:
        for arguments in inputs:
            function(*arguments)

    return call


_now = 0.0


def clock() -> float:
    """The clock that pytest-benchmark reads: `advance` moves it by the seconds that were measured."""
    return _now


def advance(seconds: float) -> None:
    """Move `clock` on."""
    global _now
    _now += seconds


def rows(cases: Sequence[Case | Steps]) -> Any:
    """Parametrises a test by case and variant."""
    marks = {case.name: pytest.mark.benchmark(group=case.name, timer=clock, warmup=False) for case in cases}
    params = [
        pytest.param(case, variant, id=f"{case.name}: {variant}", marks=marks[case.name])
        for case in cases
        for variant in case.variants
    ]
    return pytest.mark.parametrize(("case", "variant"), params)
