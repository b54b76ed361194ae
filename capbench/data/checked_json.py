"""JSON files of other people, checked field by field."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from capbench.base.errors import CapbenchError
from capbench.data.captions import one_line


class Checked(BaseModel):
    """A part of a file: types are taken literally ("5" is no number), fields that we do not read are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


Model = TypeVar("Model", bound=Checked)
Line = Annotated[str, BeforeValidator(lambda value: one_line(value) if isinstance(value, str) else value)]
"""Text that `one_line` has put on one line, before the check: a lone surrogate is no text to pydantic."""


def read_json(path: Path, model: type[Model]) -> Model:
    """The content of `path`, with or without a byte-order mark, as `model`.

    Raises CapbenchError naming the file and the line of malformed JSON, or the field that is missing or wrong.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CapbenchError(f"cannot read {path}: {error.strerror or error}") from error
    with _no_collection():
        return parse_json(content, path, model)


def parse_json(content: bytes, path: Path, model: type[Model]) -> Model:
    """`content`, which was read from `path`, as `model`; raises CapbenchError as `read_json` does."""
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


@contextmanager
def _no_collection() -> Iterator[None]:
    """Millions of new objects without a cycle among them: looking for cycles takes more time than the reading."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _explain(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False)
    first = faults[0]
    found = "" if first["type"] == "missing" else f" (found {_shorten(first['input'])})"
    more = f"; and {len(faults) - 1} more such faults" if len(faults) > 1 else ""
    return f"{_field(first['loc'])}: {first['msg'].removeprefix('Value error, ')}{found}{more}"


def _field(location: tuple[int | str, ...]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).lstrip(".") or "the whole file"


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
