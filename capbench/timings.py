"""What a benchmark run leaves behind: one JSON file of times, ceilings and provenance; nothing is overwritten."""

from __future__ import annotations

import json
import re
import secrets
import warnings
from datetime import datetime
from pathlib import Path
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

from capbench.errors import CapbenchError
from capbench.files import atomic_write
from capbench.records import Moment, provenance
from capbench.timing import Ceilings, Timing

SCHEMA_VERSION = 1


class TimingEntry(BaseModel):
    """One variant of one operation at one size.

    `size` is what a reader is told and `numbers` the same for programs. `flop` and `bytes` are what the operation needs
    at least, whatever the variant does; 0 where that is not known. `scale` is more than 1 where a part was timed and
    multiplied up. Seconds are those of one call of the whole.
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
    """A TimingEntry of a Timing; seconds are multiplied by `scale`."""
    times = {name: getattr(timing, name) * scale for name in ("median", "p10", "p90")}
    rest = {name: getattr(timing, name) for name in ("rounds", "peak_bytes", "graphed")}
    return TimingEntry.model_validate({**fields, **times, **rest, "scale": scale})


def save_timings(record: TimingRecord, folder: Path) -> Path:
    """Write a record as `<device>-<UTC start>-<6 hex>.json`, a name that no other has; return its path.

    Raises CapbenchError when the folder cannot be written.
    """
    device = re.sub(r"[^a-z0-9]+", "-", record.device.lower()).strip("-")[:60] or "device"
    stamp = datetime.fromisoformat(record.started).strftime("%Y%m%dT%H%M%SZ")
    content = (json.dumps(record.model_dump(mode="json"), indent=1) + "\n").encode()
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


def _reasons(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5])
