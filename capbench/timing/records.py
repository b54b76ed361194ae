"""What a benchmark run leaves behind: one JSON file of times, ceilings and provenance; nothing is overwritten.

And how such records are read: which rows count, which may be compared, and how sure a ratio of their times is.
"""

from __future__ import annotations

import json
import re
import secrets
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import comb
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
    field_validator,
)

from capbench.base.errors import CapbenchError
from capbench.base.files import atomic_write
from capbench.base.provenance import Moment, provenance
from capbench.timing.measure import Ceilings, Timing

SCHEMA_VERSION = 1


class TimingEntry(BaseModel):
    """One variant of one operation at one size.

    `size` is what a reader is told and `numbers` the same for programs. `flop` and `bytes` are what the operation needs
    at least, whatever the variant does; 0 where that is not known. `scale` is more than 1 where a part was timed and
    multiplied up. Seconds are those of one call of the whole; `seconds` has one entry a round, to four digits, and is
    empty in old records.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    operation: str
    size: str
    numbers: dict[str, int] = {}
    variant: str
    ours: bool
    dtype: str = "float32"
    cold: bool = False
    graphed: bool = False
    scale: PositiveFloat = 1.0
    median: PositiveFloat
    p10: PositiveFloat
    p90: PositiveFloat
    rounds: NonNegativeInt = 0
    seconds: tuple[PositiveFloat, ...] = ()
    flop: NonNegativeFloat = 0.0
    bytes: NonNegativeFloat = 0.0
    peak_bytes: NonNegativeInt | None = None


class TimingRecord(BaseModel):
    """One benchmark run on one device.

    `left_out` names variants that could not run, with the reason; `load` is the machine's load average at the start.
    `file` and `marks` belong to the reader and are not written.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    schema_version: int = SCHEMA_VERSION
    device: str
    threads: int = 0
    versions: dict[str, str] = {}
    commit: str = "unknown"
    dirty: bool = False
    started: Moment
    load: float | None = None
    ceilings: Ceilings
    entries: list[TimingEntry]
    left_out: list[str] = []
    file: str = Field(default="", exclude=True)
    marks: tuple[str, ...] = Field(default=(), exclude=True)

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


def entry(timing: Timing, scale: float = 1.0, **fields: Any) -> TimingEntry:
    """A TimingEntry of a Timing; all seconds are multiplied by `scale`."""
    seconds = tuple(float(f"{time * scale:.4g}") for time in timing.seconds)
    times = {name: getattr(timing, name) * scale for name in ("median", "p10", "p90")}
    rest = {name: getattr(timing, name) for name in ("rounds", "peak_bytes", "graphed")}
    return TimingEntry.model_validate({**fields, **times, **rest, "seconds": seconds, "scale": scale})


def save_timings(record: TimingRecord, folder: Path) -> Path:
    """Write a record as `<device>-<UTC start>-<6 hex>.json`, a name that no other has; return its path.

    Raises CapbenchError when the folder cannot be written.
    """
    device = re.sub(r"[^a-z0-9]+", "-", record.device.lower()).strip("-")[:60] or "device"
    stamp = datetime.fromisoformat(record.started).strftime("%Y%m%dT%H%M%SZ")
    content = _one_line_a_list(json.dumps(record.model_dump(mode="json"), indent=1) + "\n").encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for _ in range(100):
            path = folder / f"{device}-{stamp}-{secrets.token_hex(3)}.json"
            claim = path.with_name(f".{path.stem}.claim")
            try:
                claim.open("xb").close()  # of several processes one alone gets the name
            except FileExistsError:
                continue
            try:
                if not path.exists():
                    atomic_write(path, content)
                    return path
            finally:
                claim.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise CapbenchError(f"cannot write to {folder}: {reason}; choose another folder") from error
    raise CapbenchError(f"no free record name in {folder} after 100 tries; choose another folder")


def load_timings(folder: Path) -> list[TimingRecord]:
    """Every readable record of `folder` by file name; none without such a folder.

    A file that is no record is left out with a warning that names it. One of another schema is kept, and `marks` says
    what it lacks or has besides.
    """
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(_read(path))
        except (OSError, ValueError) as error:
            reason = _reasons(error) if isinstance(error, ValidationError) else str(error)
            warnings.warn(f"{path} is left out, it is not a timing record: {reason}", stacklevel=2)
    return records


def _read(path: Path) -> TimingRecord:
    document = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(document, dict):
        raise ValueError("it holds no JSON object")
    version, marks = document.get("schema_version", 0), []
    written = set(TimingRecord.model_fields) - {"file", "marks"}
    if version != SCHEMA_VERSION:
        missing = sorted(written - set(document))
        marks.append(f"schema {version}" + (f": no {', '.join(missing)}" if missing else ""))
    unknown = sorted(set(document) - written)
    if unknown:
        marks.append(f"unknown fields: {', '.join(unknown)}")
    if document.get("dirty"):
        marks.append("dirty tree")
    kept = {name: value for name, value in document.items() if name not in ("file", "marks")}
    return TimingRecord.model_validate({**kept, "schema_version": version, "file": path.name, "marks": tuple(marks)})


def _one_line_a_list(text: str) -> str:
    """Indented JSON with each list of numbers on one line; a string holds no line end, so none is touched."""
    return re.sub(r"\[\n[-+.\deE,\s]+\]", lambda found: "[" + " ".join(found[0][1:-1].split()) + "]", text)


def _reasons(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5])


@dataclass(frozen=True)
class Comparison:
    """The variants that may be compared: of one operation at one size, in one type, all cold or all warm, timed in
    one run."""

    record: TimingRecord
    entries: tuple[TimingEntry, ...]

    @property
    def operation(self) -> str:
        return self.entries[0].operation

    @property
    def size(self) -> str:
        return self.entries[0].size

    @property
    def numbers(self) -> Mapping[str, int]:
        return self.entries[0].numbers

    @property
    def cold(self) -> bool:
        return self.entries[0].cold

    def rival(self, beginning: str = "") -> TimingEntry | None:
        """The strongest rival, by its median, of those whose name begins so; None without one."""
        rivals = [entry for entry in self.entries if not entry.ours and entry.variant.startswith(beginning)]
        return min(rivals, key=lambda entry: entry.median, default=None)


def comparisons(records: Sequence[TimingRecord]) -> list[Comparison]:
    """The rows that count among the records of one device: an operation at a size is that of the newest record that
    has it. By the operation's name, then by size, then as they were timed."""
    newest: dict[tuple[str, str], TimingRecord] = {}
    groups: dict[tuple[str, str, str, bool], list[TimingEntry]] = {}
    for record in sorted(records, key=lambda record: (record.started, record.file), reverse=True):
        for row in record.entries:
            if newest.setdefault((row.operation, row.size), record) is record:
                groups.setdefault((row.operation, row.size, row.dtype, row.cold), []).append(row)
    found = [Comparison(newest[key[:2]], tuple(rows)) for key, rows in groups.items()]
    return sorted(found, key=lambda one: (one.operation.lower(), one.operation, tuple(one.numbers.values()), one.size))


@dataclass(frozen=True)
class Ratio:
    """How many times as long a rival takes, and where that lies with 95 %; None where that cannot be said."""

    value: float
    interval: tuple[float, float] | None = None

    @property
    def tie(self) -> bool:
        """Whether the interval, to two decimals, holds 1."""
        return self.interval is not None and round(self.interval[0], 2) <= 1 <= round(self.interval[1], 2)


def ratio(rival: TimingEntry, ours: TimingEntry) -> Ratio:
    """The median over the rounds of the rival's time over ours: rounds are paired, for the variants took turns. The
    ratio of the medians where the rounds are not known or not as many."""
    if not ours.seconds or len(ours.seconds) != len(rival.seconds):
        return Ratio(rival.median / ours.median)
    ratios = [theirs / mine for theirs, mine in zip(rival.seconds, ours.seconds, strict=True)]
    return Ratio(median(ratios), median_interval(ratios))


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The narrowest two of the sorted values, equally far from both ends, that hold the median of their distribution
    with 95 % or more; None below 6 values, where no two do.

    How many values lie below the median is binomial, whatever their distribution. David and Nagaraja, Order Statistics
    (2003), section 7.1.
    """
    count, cut, below = len(values), 0, 1  # `below` of the 2^count outcomes have at most `cut` values below the median
    while 40 * below <= 2**count:  # 2.5 % for each side
        cut += 1
        below += comb(count, cut)
    ordered = sorted(values)
    return (ordered[cut - 1], ordered[count - cut]) if cut else None
