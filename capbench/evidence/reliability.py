"""What was done to the suite on purpose and how it came through: faults, kills, fuzzing, soaks.

A record is one JSON file of sections, each a table of rows. It is written by what causes the faults: the tests
themselves (`pytest --faults FILE`), or a session that runs for hours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, field_validator

from capbench.base.files import atomic_write
from capbench.base.json_records import JsonRecord, as_json, load_records
from capbench.base.provenance import Moment, provenance

SCHEMA_VERSION = 1
FAULTS = "faults"  # the section of the tests, with the columns of `Row`s that `fault_rows` makes

Row = dict[str, str | int | float]  # by heading; the rows of a section have the same headings


class ReliabilityRecord(JsonRecord):
    """One run of what causes faults, on one machine."""

    kind = "reliability record"
    schema_version: int = SCHEMA_VERSION
    sections: dict[str, list[Row]]  # by title
    device: str
    threads: int = 0
    versions: dict[str, str] = Field(default_factory=dict)
    commit: str = "unknown"
    dirty: bool = False
    started: Moment
    command: str = ""

    @field_validator("sections")
    @classmethod
    def _rows_are_alike(cls, sections: dict[str, list[Row]]) -> dict[str, list[Row]]:
        for title, rows in sections.items():
            for place, row in enumerate(rows, 1):
                if not row or row.keys() != rows[0].keys():
                    raise ValueError(f"{title}, row {place}: its headings are not those of row 1")
        return sections


def fault_rows(outcomes: Mapping[str, Sequence[str]]) -> list[Row]:
    """The section of faults, from the outcomes of the tests that cause each: "passed", "failed" or "skipped".

    >>> fault_rows({"disk full": ["passed", "skipped"]})
    [{'fault': 'disk full', 'tests': 2, 'passed': 1, 'failed': 0, 'skipped': 1}]
    """
    return [
        {"fault": fault, "tests": len(ended), **{name: ended.count(name) for name in ("passed", "failed", "skipped")}}
        for fault, ended in sorted(outcomes.items())
    ]


def save_reliability(sections: Mapping[str, list[Row]], file: Path, command: str, started: datetime) -> None:
    """Write a record of this machine in place of the last one. Raises CapbenchError if it cannot be written."""
    origin = provenance() | {"started": started.astimezone(UTC).isoformat(), "command": command}
    known = {name: value for name, value in origin.items() if name in ReliabilityRecord.model_fields}
    atomic_write(file, as_json(ReliabilityRecord(sections=dict(sections), **known)))


def load_reliability(folder: Path) -> list[ReliabilityRecord]:
    """Every readable record in `folder`; see `load_records` for damaged files and other schemas."""
    return load_records(ReliabilityRecord, folder)
