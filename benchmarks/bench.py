"""How an operation and its rivals are set side by side: checked, timed in turn, shown by pytest-benchmark, recorded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor

from capbench.timing import ROUNDS, Call, Ceilings, Timing, ceilings, measure, roofline_share
from capbench.timings import TimingEntry, TimingRecord, entry, timing_provenance

Run = Callable[..., Tensor | tuple[Tensor, ...]]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
SECONDS = 4.0  # a measurement takes, unless three rounds take longer
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # of the norm of what is wanted
COMPILED = "torch.compile"  # how the name of a compiled rival begins


@dataclass(frozen=True)
class Way:
    """One way to compute an operation. `scale` is more than 1 where `run` does a part and the time is multiplied up,
    which the way's name must say; `counted` says whether torch sees its memory."""

    run: Run
    ours: bool = False
    scale: float = 1.0
    counted: bool = True


@dataclass(frozen=True)
class Case:
    """An operation at one size. `inputs` makes the timed tensors on a device in a type (whole numbers as they are),
    `small` those of the check in float64 on the CPU. `flop` and `bytes` are what any way must do at least."""

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

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


_now = 0.0


def clock() -> float:
    """The time of pytest-benchmark's table: it goes on by the seconds that were measured, and only then."""
    return _now


def rows(cases: Sequence[Case]) -> Any:
    """The parametrisation of a test by case and way."""
    marks = {case.name: pytest.mark.benchmark(group=case.name, timer=clock, warmup=False) for case in cases}
    params = [
        pytest.param(case, way, id=f"{case.name}: {way}", marks=marks[case.name]) for case in cases for way in case.ways
    ]
    return pytest.mark.parametrize(("case", "way"), params)


class Bench:
    """The measurements of one session; each case is checked and timed once, when its first row is asked for."""

    def __init__(self, rounds: int = ROUNDS) -> None:
        self.rounds, self.started = rounds, datetime.now(UTC)
        self.load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self.entries: list[TimingEntry] = []
        self.left_out: list[str] = []
        self._cases: dict[str, dict[str, Timing | str]] = {}

    @cached_property
    def ceilings(self) -> Ceilings:
        return ceilings(DEVICE)

    def show(self, benchmark: Any, case: Case, way: str) -> None:
        """Put a row into pytest-benchmark's table; skip it where the way was left out."""
        if case.name not in self._cases:
            self._cases[case.name] = self._measure(case)
        found = self._cases[case.name][way]
        if isinstance(found, str):
            pytest.skip(found)
        times = iter([seconds * case.ways[way].scale for seconds in found.seconds])

        def advance() -> None:
            global _now
            _now += next(times)

        benchmark.pedantic(advance, rounds=found.rounds, iterations=1)
        benchmark.extra_info.update(self._extra(case, way))

    def record(self) -> TimingRecord:
        started = self.started.isoformat(timespec="seconds")
        origin = timing_provenance(DEVICE)
        rest = {"entries": self.entries, "left_out": self.left_out, "ceilings": self.ceilings, "load": self.load}
        return TimingRecord.model_validate({**origin, **rest, "started": started})

    def _extra(self, case: Case, way: str) -> dict[str, Any]:
        mine = [e for e in self.entries if (e.operation, e.size, e.variant) == (case.operation, case.size, way)]
        extra: dict[str, Any] = {"dtype": case.dtype_name, "ours": case.ways[way].ours, "recorded": True}
        for e in mine:
            temperature = "cold" if e.cold else "warm"
            extra[f"{temperature}_seconds"] = e.median
            extra[f"{temperature}_tflops"] = case.flop / e.median / 1e12
            extra[f"{temperature}_gb_per_s"] = case.bytes / e.median / 1e9
            share = roofline_share(case.flop, case.bytes, e.median, self.ceilings, case.dtype_name)
            extra[f"{temperature}_share_of_ceiling"] = share
            extra["peak_bytes"], extra["graphed"] = e.peak_bytes, e.graphed
        return extra

    def _measure(self, case: Case) -> dict[str, Timing | str]:
        """By way, the warm timing or why there is none."""
        torch.manual_seed(0)
        check_small(case)
        inputs = case.inputs()
        calls: dict[str, Call] = {}
        found: dict[str, Timing | str] = {}
        first: Tensor | None = None
        for name, way in case.ways.items():
            try:
                calls[name], result = prepared(case, way, inputs, name.startswith(COMPILED))
            except Exception as error:
                if way.ours or not (name.startswith(COMPILED) or isinstance(error, torch.OutOfMemoryError)):
                    raise
                found[name] = f"{case.name}: {name} failed ({type(error).__name__})"
                self.left_out.append(str(found[name]))
                continue
            if way.scale == 1:
                first = result if first is None else first
                near(result, first, TOLERANCE[case.dtype], f"{case.name}: {name}")
        for cold in (False, True) if ON_GPU else (False,):
            timings = measure(calls, DEVICE, self.rounds, cold, seconds=SECONDS)
            self.entries += [self._entry(case, name, timing, cold) for name, timing in timings.items()]
            found = {**timings, **found}  # the warm ones are first, and stay
        return found

    def _entry(self, case: Case, name: str, timing: Timing, cold: bool) -> TimingEntry:
        way = case.ways[name]
        size = {"size": case.size, "numbers": dict(case.numbers), "flop": case.flop, "bytes": case.bytes}
        what = {"operation": case.operation, "variant": name, "ours": way.ours, "dtype": case.dtype_name, "cold": cold}
        made = entry(timing, way.scale, **what, **size)
        return made if way.counted else made.model_copy(update={"peak_bytes": None})


def prepared(case: Case, way: Way, inputs: tuple[Tensor, ...], compiled: bool) -> tuple[Call, Tensor]:
    """The call that is timed, and what it gives once, flat. A compiled way is compiled afresh, for its shapes alone."""
    run = way.run
    if compiled:
        torch.compiler.reset()
        run = torch.compile(run, dynamic=False)
    if not case.backward:

        def forward() -> object:
            with torch.no_grad():
                return run(*inputs)

        with torch.no_grad():
            return forward, flat(run(*inputs))
    leaves = tuple(x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in inputs)
    weight = torch.randn_like(one(run(*leaves)))

    def both() -> object:
        return torch.autograd.grad(one(run(*leaves)), [x for x in leaves if x.requires_grad], weight)

    both()
    return both, flat(run(*leaves)).detach()


def check_small(case: Case) -> None:
    """Parity before speed: each way against the reference in float64, forward and gradient; on a GPU also ours in the
    timed type, where the reference is in float64 on the same rounded numbers."""
    small = case.small()
    wanted = results(case.reference, small, case.backward)
    for name, way in case.ways.items():
        if not name.startswith(COMPILED):
            for found, expected in zip(results(way.run, small, case.backward), wanted, strict=True):
                near(found, expected, 1e-9, f"{case.name}: {name}, in float64")
    if not ON_GPU:
        return
    rounded = tuple(x.to(DEVICE, case.dtype) if x.is_floating_point() else x.to(DEVICE) for x in small)
    exact = tuple(x.double() if x.is_floating_point() else x for x in rounded)
    wanted = results(case.reference, exact, case.backward)
    for name, way in case.ways.items():
        if way.ours:
            for found, expected in zip(results(way.run, rounded, case.backward), wanted, strict=True):
                near(found, expected, TOLERANCE[case.dtype], f"{case.name}: {name}, in {case.dtype_name}")


def results(run: Run, inputs: tuple[Tensor, ...], backward: bool) -> list[Tensor]:
    """What an operation gives, and the gradients of a weighted sum of it."""
    leaves = [x.detach().clone().requires_grad_(backward) if x.is_floating_point() else x for x in inputs]
    found = run(*leaves)
    if not backward:
        return [flat(found)]
    result = one(found)
    weight = torch.linspace(-1, 2, result.numel(), device=result.device, dtype=result.dtype).view_as(result) + 0.5
    gradients = torch.autograd.grad(result, [x for x in leaves if x.requires_grad], weight)
    return [result.detach(), *gradients]


def near(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    a, b = found.double().cpu(), expected.double().cpu()
    assert bool(b.any()), f"{what}: the check has nothing but zeros to go by"
    assert a.shape == b.shape, f"{what}: {tuple(a.shape)} instead of {tuple(b.shape)}"
    error = float((a - b).norm() / b.norm())
    assert error <= tolerance, f"{what}: it is off by {error:.2g} of the norm"


def one(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


def flat(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    parts = [result] if isinstance(result, Tensor) else list(result)
    return torch.cat([part.flatten() for part in parts])


def plain_entry(operation: str, variant: str, ours: bool, scale: float, seconds: Sequence[float]) -> TimingEntry:
    """The entry of a benchmark that pytest-benchmark timed itself: times alone, on the CPU."""
    made = entry(Timing(tuple(seconds), 0), scale, operation=operation, size="", variant=variant, ours=ours)
    return made.model_copy(update={"peak_bytes": None})
