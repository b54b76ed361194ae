"""The record of a benchmark run: one JSON file of times, ceilings and provenance, and how its times compare."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, field_validator

from capbench.base.files import atomic_write
from capbench.base.json_records import RECORD_CONFIG, JsonRecord, as_json, load_records, new_stem
from capbench.base.provenance import Moment, provenance
from capbench.timing.measure import Ceilings, Timing, roofline_bound

SCHEMA_VERSION = 1


class TimingEntry(BaseModel):
    """One variant of one operation at one size. All times are seconds of one whole call."""

    model_config = RECORD_CONFIG

    operation: str
    size: str  # for a reader: "1,000 images x 5,000 captions"
    numbers: dict[str, int] = {}  # the same for programs: {"images": 1000, "captions": 5000}
    variant: str
    ours: bool
    dtype: str = "float32"
    cold: bool = False  # the cache was emptied before each call
    graphed: bool = False  # replayed in a CUDA graph
    scale: PositiveFloat = 1.0  # more than 1: only a part was timed, and its time multiplied by this
    median: PositiveFloat
    p10: PositiveFloat
    p90: PositiveFloat
    rounds: NonNegativeInt = 0
    seconds: tuple[PositiveFloat, ...] = ()  # one for each round, to four digits; empty in old records
    flop: NonNegativeFloat = 0.0  # the least that the operation needs, whatever the variant does; 0: unknown
    bytes: NonNegativeFloat = 0.0  # likewise, read and written
    peak_bytes: NonNegativeInt | None = None


class TimingRecord(JsonRecord):
    """One benchmark run on one device."""

    kind = "timing record"
    schema_version: int = SCHEMA_VERSION
    device: str
    threads: int = 0
    versions: dict[str, str] = Field(default_factory=dict)
    commit: str = "unknown"
    dirty: bool = False
    started: Moment
    load: float | None = None  # the machine's load average at the start
    ceilings: Ceilings
    entries: list[TimingEntry]
    left_out: list[str] = Field(default_factory=list)  # the variants that could not run, with the reason

    def bound(self, entry: TimingEntry) -> float:
        """Seconds that the roofline of this run allows an entry; 0 where unknown."""
        known = not entry.flop or entry.dtype in self.ceilings.product
        return roofline_bound(entry.flop, entry.bytes, self.ceilings, entry.dtype) if known else 0.0

    @field_validator("ceilings")
    @classmethod
    def _ceilings_are_positive(cls, value: Ceilings) -> Ceilings:
        if not all(0 < number < float("inf") for number in (value.copy, *value.product.values())):
            raise ValueError("are positive numbers")
        return value


def timing_provenance(device: torch.device | str) -> dict[str, Any]:
    """The fields device, threads, versions, commit and dirty of a TimingRecord."""
    origin = provenance(device)
    versions = {name: origin["versions"][name] for name in ("capbench", "torch", "python")}
    try:
        import triton

        versions["triton"] = str(triton.__version__)
    except ImportError:
        versions["triton"] = "not installed"
    return origin | {"versions": versions | {"cuda": str(torch.version.cuda or "none")}}


def timing_entry(timing: Timing, scale: float = 1.0, **fields: Any) -> TimingEntry:
    """The TimingEntry of a Timing, with all seconds multiplied by `scale`."""
    seconds = tuple(float(f"{time * scale:.4g}") for time in timing.seconds)
    times = {name: getattr(timing, name) * scale for name in ("median", "p10", "p90")}
    copied = {name: getattr(timing, name) for name in ("rounds", "peak_bytes", "graphed")}
    return TimingEntry.model_validate({**fields, **times, **copied, "seconds": seconds, "scale": scale})


def save_timings(record: TimingRecord, folder: Path) -> Path:
    """Write a record as `<device>-<UTC start>-<6 hex>.json`, under a name that no other has; return its path.

    Raises CapbenchError when the folder cannot be written.
    """
    device = re.sub(r"[^a-z0-9]+", "-", record.device.lower()).strip("-")[:60] or "device"
    content = as_json(record)
    with new_stem(folder, device, record.started) as stem:
        atomic_write(folder / f"{stem}.json", content)
    return folder / f"{stem}.json"


def load_timings(folder: Path) -> list[TimingRecord]:
    """Every readable timing record in `folder`; see `load_records` for damaged files and other schemas."""
    return load_records(TimingRecord, folder)


@dataclass(frozen=True)
class Comparison:
    """Variants that may be compared: one operation, size and type, all cold or all warm, timed in one run."""

    record: TimingRecord
    entries: tuple[TimingEntry, ...]

    operation: str
    size: str
    dtype: str
    cold: bool

    @property
    def numbers(self) -> Mapping[str, int]:
        return self.entries[0].numbers

    def baseline(self, prefix: str = "") -> TimingEntry | None:
        """The variant of the least median time that is not ours and whose name starts with `prefix`, if any."""
        others = [entry for entry in self.entries if not entry.ours and entry.variant.startswith(prefix)]
        return min(others, key=lambda entry: entry.median, default=None)


def comparisons(records: Sequence[TimingRecord]) -> list[Comparison]:
    """The comparisons of one device, by operation, then size.

    Each operation at each size is taken from the newest record that has it.
    """
    newest: dict[tuple[str, str], TimingRecord] = {}
    groups: dict[tuple[str, str, str, bool], list[TimingEntry]] = {}
    for record in sorted(records, key=lambda record: (record.started, record.file), reverse=True):
        for entry in record.entries:
            if newest.setdefault((entry.operation, entry.size), record) is record:
                groups.setdefault((entry.operation, entry.size, entry.dtype, entry.cold), []).append(entry)
    compared = [Comparison(newest[key[:2]], tuple(entries), *key) for key, entries in groups.items()]
    return sorted(compared, key=lambda c: (c.operation.lower(), c.operation, tuple(c.numbers.values()), c.size))


@dataclass(frozen=True)
class Ratio:
    """How many times as long a baseline takes as ours: more than 1 means that ours is faster."""

    value: float
    interval: tuple[float, float] | None = None  # of 95 %; None: too few rounds to tell

    @property
    def tie(self) -> bool:
        """Whether the interval, to two decimals, holds 1."""
        return self.interval is not None and round(self.interval[0], 2) <= 1 <= round(self.interval[1], 2)


def ratio(baseline: TimingEntry, ours: TimingEntry) -> Ratio:
    """The median over rounds of the baseline's time over ours. Rounds are paired, because the variants took turns.

    Where rounds are missing or differ in number: the ratio of the medians.
    """
    if not ours.seconds or len(ours.seconds) != len(baseline.seconds):
        return Ratio(baseline.median / ours.median)
    ratios = [theirs / mine for theirs, mine in zip(baseline.seconds, ours.seconds, strict=True)]
    return Ratio(median(ratios), median_interval(ratios))


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The narrowest symmetric pair of order statistics that holds the median with at least 95 %; None below 6 values.

    Exact for any distribution: the number of values below the median is binomial. David and Nagaraja, Order
    Statistics (2003), section 7.1.

    >>> median_interval([5.0, 1.0, 4.0, 2.0, 6.0, 3.0])
    (1.0, 6.0)
    """
    count, cut, below = len(values), 0, 1  # `below` of the 2^count outcomes have at most `cut` values below the median
    while 40 * below <= 2**count:  # 2.5 % on each side
        cut += 1
        below += comb(count, cut)
    ordered = sorted(values)
    return (ordered[cut - 1], ordered[count - cut]) if cut else None
