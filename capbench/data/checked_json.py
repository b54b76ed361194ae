"""JSON files checked field by field."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from capbench.base.errors import CapbenchError
from capbench.base.files import read_bytes
from capbench.data.captions import one_line


class Checked(BaseModel):
    """A part of a file: types are strict ("5" is no number), other fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


Model = TypeVar("Model", bound=Checked)
Line = Annotated[str, BeforeValidator(lambda value: one_line(value) if isinstance(value, str) else value)]
"""Text put on one line before the check, because pydantic refuses a lone surrogate."""


def read_json(path: Path, model: type[Model]) -> Model:
    """The content of `path`, with or without a byte-order mark, as `model`.

    Raises CapbenchError naming the file and the line of malformed JSON, or the field that is missing or wrong.
    """
    content = read_bytes(path, path)
    enabled = gc.isenabled()
    gc.disable()  # millions of new objects form no cycles, and the search for cycles would outlast the reading
    try:
        return parse_json(content, path, model)
    finally:
        if enabled:
            gc.enable()


def parse_json(content: bytes, path: Path, model: type[Model]) -> Model:
    """`content`, read from `path`, as `model`. Raises CapbenchError as `read_json` does."""
    try:
        value = json.loads(decoded(content, path))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        whole = error.doc[error.pos :].strip() and error.doc.rstrip()[-1] in "}]"
        cut = "" if whole else "; the file ends too early, fetch it again"
        raise CapbenchError(f"{path}, {place}: malformed JSON: {error.msg}{cut}") from error
    except (ValueError, RecursionError) as error:
        raise CapbenchError(f"{path}: malformed JSON: {error}") from error
    return _validated(value, path, model)


def read_json_lines(path: Path, model: type[Model]) -> Iterator[tuple[int, Model]]:
    """The number and the content of each line that is not blank, as `model`.

    Raises CapbenchError naming the file and the line that is malformed or whose field is missing or wrong.
    """
    for number, line in enumerate(decoded(read_bytes(path, path), path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            fault = f"malformed JSON: {error.msg} (column {error.colno})"
            raise CapbenchError(f"{place}: {fault}; write one whole object a line") from error
        except (ValueError, RecursionError) as error:
            raise CapbenchError(f"{place}: malformed JSON: {error}") from error
        yield number, _validated(value, place, model)


def decoded(content: bytes, path: Path) -> str:
    """The text of a file, without a byte-order mark. Raises CapbenchError naming the line that is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CapbenchError(f"{path}, line {line}: not UTF-8 (byte {error.start}); save it as UTF-8") from error


def _validated(value: object, place: object, model: type[Model]) -> Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise CapbenchError(f"{place}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False)
    first = faults[0]
    text = repr(first["input"])
    shown = text if len(text) <= 80 else text[:77] + "..."
    value = "" if first["type"] == "missing" else f" (found {shown})"
    more = f"; and {len(faults) - 1} more such faults" if len(faults) > 1 else ""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
    field = "".join(steps).lstrip(".")
    fault = re.sub(r"a valid dictionary or instance of \w+", 'an object {"...": ...}', first["msg"])
    return f"{field}: {fault.removeprefix('Value error, ')}{value}{more}".removeprefix(": ")
