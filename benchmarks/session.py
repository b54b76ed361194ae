"""A session of benchmarks: each case is checked, its variants are timed in turn, reported and recorded."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.bench import COMPILED, DEVICE, ON_GPU, Case, Steps, advance
from benchmarks.parity import GRADIENT, TOLERANCE, check_small, near, prepared
from capbench.base.processor import computes_bf16
from capbench.timing.measure import ROUNDS, Call, Ceilings, Timing, ceilings, measure, roofline_share
from capbench.timing.records import TimingEntry, TimingRecord, timing_entry, timing_provenance

SECONDS = 4.0  # of a measurement for each step of a call, unless three rounds take longer


class Bench:
    """The measurements of one session; each case is checked and timed once, when its first variant is reported."""

    def __init__(self, rounds: int = ROUNDS) -> None:
        self.rounds, self.started = rounds, datetime.now(UTC)
        self.load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self.entries: list[TimingEntry] = []
        self.left_out: list[str] = []
        self._cases: dict[str, dict[str, Timing | str]] = {}
        self._failures: dict[str, str] = {}

    @cached_property
    def ceilings(self) -> Ceilings:
        return ceilings(DEVICE)

    @cached_property
    def origin(self) -> dict[str, Any]:
        return timing_provenance(DEVICE)

    def show(self, benchmark: Any, case: Case | Steps, variant: str) -> None:
        """Report a variant in pytest-benchmark's table; skip it if it was left out."""
        if case.name in self._failures:
            pytest.fail(self._failures[case.name], pytrace=False)
        if case.name not in self._cases:
            try:
                self._cases[case.name] = self._measure(case)
            except Exception as error:
                self._failures[case.name] = f"as the first variant of this case: {type(error).__name__}: {error}"
                raise
        found = self._cases[case.name][variant]
        if isinstance(found, str):
            pytest.skip(found)
        times = iter([seconds * case.variants[variant].scale for seconds in found.seconds])
        benchmark.pedantic(lambda: advance(next(times)), rounds=found.rounds, iterations=1)
        benchmark.extra_info.update(self._extra(case, variant))

    def record(self) -> TimingRecord:
        started = self.started.isoformat(timespec="seconds")
        rest = {"entries": self.entries, "left_out": self.left_out, "ceilings": self.ceilings, "load": self.load}
        return TimingRecord.model_validate({**self.origin, **rest, "started": started})

    def _extra(self, case: Case | Steps, variant: str) -> dict[str, Any]:
        """The provenance of the number, and its rates."""
        extra: dict[str, Any] = {name: self.origin[name] for name in ("device", "threads", "versions")}
        extra |= {
            "bf16": computes_bf16(DEVICE),
            "load": self.load,
            "dtype": dtype_name(case),
            "ours": case.variants[variant].ours,
        }
        mine = [e for e in self.entries if (e.operation, e.size, e.variant) == (case.operation, case.size, variant)]
        for e in mine:
            temperature = "cold" if e.cold else "warm"
            extra[f"{temperature}_seconds"] = e.median
            extra["peak_bytes"], extra["graphed"] = e.peak_bytes, e.graphed
            if case.flop or case.bytes:
                extra[f"{temperature}_tflops"] = case.flop / e.median / 1e12
                extra[f"{temperature}_gb_per_s"] = case.bytes / e.median / 1e9
                share = roofline_share(case.flop, case.bytes, e.median, self.ceilings, dtype_name(case))
                extra[f"{temperature}_share_of_ceiling"] = share
        return extra

    def _measure(self, case: Case | Steps) -> dict[str, Timing | str]:
        """By variant, the warm timing or why there is none. Steps are never timed cold."""
        torch.manual_seed(0)
        calls, found = self._checked(case) if isinstance(case, Case) else self._made(case)
        graph, steps = (None, 1) if isinstance(case, Case) else (False, case.calls)
        entries: list[TimingEntry] = []
        for cold in (False, True) if ON_GPU and isinstance(case, Case) else (False,):
            measured: dict[str, Timing] = {}
            for counted in (True, False):  # the threads of another library would slow the next call
                some = {name: call for name, call in calls.items() if case.variants[name].counted is counted}
                measured |= measure(some, DEVICE, self.rounds, cold, graph, SECONDS * steps) if some else {}
            timings = {name: of_one(timing, steps) for name, timing in measured.items()}
            entries += [self._entry(case, name, timing, cold) for name, timing in timings.items()]
            found = {**timings, **found}  # warm timings come first and stay
        self.entries += entries
        return found

    def _checked(self, case: Case) -> tuple[dict[str, Call], dict[str, Timing | str]]:
        """The calls of a case, once its variants agree, and why others are left out."""
        check_small(case)
        inputs = case.inputs()
        calls: dict[str, Call] = {}
        found: dict[str, Timing | str] = {}
        first: list[Tensor] = []
        for name, variant in case.variants.items():
            try:
                call, results = prepared(case, variant, inputs, fresh_compiler(name))
                if variant.scale == 1:
                    first = first or results
                    near(results[0], first[0], TOLERANCE[case.dtype], f"{case.name}: {name}")
                    for gradient, expected in zip(results[1:], first[1:], strict=True):
                        near(gradient, expected, GRADIENT[case.dtype], f"{case.name}: {name}, gradient")
                calls[name] = call
            except Exception as error:
                found[name] = self._excused(case, name, error)
        return calls, found

    def _made(self, case: Steps) -> tuple[dict[str, Call], dict[str, Timing | str]]:
        """The calls of steps, once they agree, and why others are left out."""
        case.check()
        calls: dict[str, Call] = {}
        found: dict[str, Timing | str] = {}
        for name, variant in case.variants.items():
            try:
                compiled = fresh_compiler(name)
                call = variant.run()
                if compiled:
                    call()
                calls[name] = call
            except Exception as error:
                found[name] = self._excused(case, name, error)
        return calls, found

    def _excused(self, case: Case | Steps, name: str, error: Exception) -> str:
        """Why a variant is left out: it failed or disagrees. Raises the error of one that must do neither."""
        variant = case.variants[name]
        may_fail = variant.optional or name.startswith(COMPILED) or isinstance(error, torch.OutOfMemoryError)
        if variant.ours or not may_fail:
            raise error
        why = f": {error}" if isinstance(error, ImportError | AssertionError) else ""
        self.left_out.append(f"{case.name}: {name} failed ({type(error).__name__}{why})")
        return self.left_out[-1]

    def _entry(self, case: Case | Steps, name: str, timing: Timing, cold: bool) -> TimingEntry:
        variant = case.variants[name]
        size = {"size": case.size, "numbers": dict(case.numbers), "flop": case.flop, "bytes": case.bytes}
        what = {
            "operation": case.operation,
            "variant": name,
            "ours": variant.ours,
            "dtype": dtype_name(case),
            "cold": cold,
        }
        made = timing_entry(timing, variant.scale, **what, **size)
        return made if variant.counted and variant.scale == 1 else made.model_copy(update={"peak_bytes": None})


def of_one(timing: Timing, steps: int) -> Timing:
    """The timing of one step of a call."""
    return replace(timing, seconds=tuple(seconds / steps for seconds in timing.seconds))


def fresh_compiler(name: str) -> bool:
    """Whether the variant is compiled; if so, resets the compiler."""
    if name.startswith(COMPILED):
        torch.compiler.reset()
    return name.startswith(COMPILED)


def dtype_name(case: Case | Steps) -> str:
    return str(case.dtype).removeprefix("torch.")
