"""COCO's results format, in which captions are read and written: [{"image_id": 42, "caption": "a dog"}, ...]."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import model_validator

from capbench.base.errors import CapbenchError
from capbench.base.files import atomic_write
from capbench.data.checked_json import Checked, Line, read_json


def read_results(path: Path) -> list[tuple[tuple[int | str, ...], str]]:
    """What names each image, and its caption. The fields `image_id`, `file_name` and `image` name it, one or several.

    A name is an id or a file name. Raises CapbenchError naming the file and the field that is missing or wrong.
    """
    entries = read_json(path, _Results).results
    if not entries:
        raise CapbenchError(f'{path} has no result; it should be a list: [{{"image_id": 42, "caption": "a dog"}}, ...]')
    return [(entry.names, entry.caption) for entry in entries]


def result(image_id: int | str, file_name: str, caption: str, **further: Any) -> dict[str, Any]:
    """One entry of a results file; `further` fields follow the three that `read_results` reads."""
    return {"image_id": image_id, "caption": caption, "file_name": file_name, **further}


def write_results(path: Path, results: Iterable[Mapping[str, Any]]) -> None:
    """Write what `result` made, an entry a line. Raises CapbenchError when the file cannot be written."""
    lines = ",\n".join(map(json.dumps, results))
    atomic_write(path, f"[\n{lines}\n]\n".encode())


class _Result(Checked):
    image_id: int | Line | None = None
    file_name: Line | None = None
    image: int | Line | None = None
    caption: Line

    @property
    def names(self) -> tuple[int | str, ...]:
        return tuple(name for name in (self.image_id, self.file_name, self.image) if name is not None)

    @model_validator(mode="after")
    def _named(self) -> _Result:
        if not self.names:
            raise ValueError("it names no image; give image_id, file_name or image")
        return self


class _Results(Checked):
    results: list[_Result]

    @model_validator(mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        if not isinstance(value, list):
            raise ValueError('results are a list: [{"image_id": 42, "caption": "a dog"}, ...]')
        return {"results": value}
