"""Records: pydantic models kept as one JSON file each, under names that are never reused."""

from __future__ import annotations

import json
import re
import secrets
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from capbench.base.errors import CapbenchError

RECORD_CONFIG = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
LARGEST = 1e100  # of a number: sums and squares of larger ones would not be finite

Count = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


class JsonRecord(BaseModel):
    """What every record has. A subclass gives `schema_version` its default, the version that it writes."""

    model_config = RECORD_CONFIG

    kind: ClassVar[str] = "record"  # in messages
    blanks: ClassVar[Mapping[str, Any] | None] = None  # of fields missing in other schemas; None: the defaults
    schema_version: int
    # Set by the reader and never written: the file's name, and what a page must say about the record
    # ("dirty tree", "schema 0: no threads", "unknown fields: mood").
    file: str = Field(default="", exclude=True)
    marks: tuple[str, ...] = Field(default=(), exclude=True)

    @classmethod
    def upgraded(cls, document: dict[str, Any]) -> dict[str, Any]:
        """The JSON object of an older schema in its present form."""
        return document


AnyRecord = TypeVar("AnyRecord", bound=JsonRecord)


@contextmanager
def new_stem(folder: Path, words: str, started: str) -> Iterator[str]:
    """The stem `<words>-<UTC start>-<6 hex>`, which no file in `folder` has; no other process gets it meanwhile.

    Creates the folder. Raises CapbenchError when the folder cannot be written or 100 draws are all taken.
    """
    stem, claim = _claimed(folder, f"{words}-{datetime.fromisoformat(started):%Y%m%dT%H%M%SZ}")
    try:
        yield stem
    finally:
        claim.unlink(missing_ok=True)


def _claimed(folder: Path, prefix: str) -> tuple[str, Path]:
    """A free stem and the hidden file that holds it: only one process succeeds in creating that file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for _ in range(100):
            stem = f"{prefix}-{secrets.token_hex(3)}"
            claim = folder / f".{stem}.claim"
            try:
                claim.open("xb").close()
            except FileExistsError:
                continue
            if not any(folder.glob(f"{stem}.*")):
                return stem, claim
            claim.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise CapbenchError(f"cannot write to {folder}: {reason}; choose another folder") from error
    raise CapbenchError(f"no free record name for {prefix} in {folder} after 100 tries; choose another folder")


def as_json(record: JsonRecord) -> bytes:
    """Indented JSON with each list of numbers on one line. JSON strings hold no line ends, so none is changed."""
    text = json.dumps(record.model_dump(mode="json"), indent=1) + "\n"
    return re.sub(r"\[\n[-+.\deE,\s]+\]", lambda numbers: "[" + " ".join(numbers[0][1:-1].split()) + "]", text).encode()


def load_records(model: type[AnyRecord], folder: Path) -> list[AnyRecord]:
    """Every readable record in `folder`, by file name; an absent folder has none.

    A file that is not a record is skipped with a warning that names it. A record of another schema is kept: a field
    that it lacks takes its value in the model's `blanks`, and `marks` names it.
    """
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(read_record(model, path))
        except CapbenchError as error:
            warnings.warn(f"left out: {error}", stacklevel=3)
    return records


def read_record(model: type[AnyRecord], path: Path) -> AnyRecord:
    """One record, as `load_records` reads it. Raises CapbenchError naming the file and what is wrong with it."""
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(document, dict):
            raise ValueError("it holds no JSON object")
        return _validated(model, path.name, model.upgraded(document))
    except (OSError, ValueError, OverflowError, RecursionError, TypeError, AttributeError, LookupError) as error:
        reason = _reasons(error) if isinstance(error, ValidationError) else str(error)
        raise CapbenchError(f"{path} is not a {model.kind}: {reason}") from error


def _validated(model: type[AnyRecord], file: str, document: dict[str, Any]) -> AnyRecord:
    written = {name: field for name, field in model.model_fields.items() if not field.exclude}
    blanks = model.blanks
    if blanks is None:
        optional = ((name, field) for name, field in written.items() if not field.is_required())
        blanks = {name: field.get_default(call_default_factory=True) for name, field in optional}
    version, marks = document.get("schema_version", 0), []
    if version != model.model_fields["schema_version"].default:
        missing = [name for name in blanks if name not in document and name != "schema_version"]
        document = {**blanks, **document}
        marks.append(f"schema {version}" + (f": no {', '.join(missing)}" if missing else ""))
    if unknown := sorted(document.keys() - written.keys()):
        marks.append(f"unknown fields: {', '.join(unknown)}")
    if document.get("dirty"):
        marks.append("dirty tree")
    return model.model_validate(document | {"schema_version": version, "file": file, "marks": tuple(marks)})


def _reasons(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5])
