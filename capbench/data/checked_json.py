"""JSON files checked field by field."""

from __future__ import annotations

import gc
import json
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
        value = json.loads(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        whole = error.doc[error.pos :].strip() and error.doc.rstrip()[-1] in "}]"
        cut = "" if whole else "; the file ends too early, fetch it again"
        raise CapbenchError(f"{path}, {place}: malformed JSON: {error.msg}{cut}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CapbenchError(f"{path}, line {line}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise CapbenchError(f"{path}: malformed JSON: {error}") from error
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise CapbenchError(f"{path}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False)
    first = faults[0]
    text = repr(first["input"])
    shown = text if len(text) <= 80 else text[:77] + "..."
    value = "" if first["type"] == "missing" else f" (found {shown})"
    more = f"; and {len(faults) - 1} more such faults" if len(faults) > 1 else ""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
    field = "".join(steps).lstrip(".") or "the whole file"
    return f"{field}: {first['msg'].removeprefix('Value error, ')}{value}{more}"
