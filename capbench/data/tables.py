"""Tables of captions: `captions.csv`, one row a caption, and `captions.jsonl`, one object a row.

    image,caption,split
    garden/0001.jpg,A dog runs over the grass.,train

In JSON lines, {"image": "0001.jpg", "caption": ["A dog.", "Ein Hund."], "split": "train"}, the caption may be a list.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import BeforeValidator

from capbench.base.errors import CapbenchError
from capbench.base.files import read_bytes
from capbench.data.captions import SPLITS, CaptionDataset, one_line, path_fault
from capbench.data.checked_json import Checked, Line, decoded, read_json_lines
from capbench.data.images import ImageFolder
from capbench.data.tokenizers import UNICODE, tokenize

COLUMNS = ("image", "caption", "split")


class Row(NamedTuple):
    """A caption of an image."""

    line: int  # of the file
    image: str
    caption: str
    split: str


def read_table(path: Path, image_folder: Path, name: str, tokenizer: str = UNICODE) -> CaptionDataset:
    """The data set of a table, its images in the order of their first rows, each with its captions in theirs.

    Ids are positions: of an image among the images, of a caption among the captions. Further columns are ignored, line
    breaks in a caption become spaces. Raises CapbenchError naming file and line for a missing or double column, an
    empty caption, an image outside the folder or in two splits, another split than train, val and test, and a
    malformed file.
    """
    rows = _checked(path, _of_csv(path) if path.suffix == ".csv" else _of_json_lines(path))
    split_of = {row.image: row.split for row in rows}
    position = {image: number for number, image in enumerate(split_of)}
    rows.sort(key=lambda row: position[row.image])
    if not rows:
        raise CapbenchError(f"{path} has no caption; write one a row: {', '.join(COLUMNS)}")
    names = tuple(split_of)
    try:
        return CaptionDataset(
            name=name,
            images=ImageFolder(image_folder, names),
            image_names=names,
            image_ids=tuple(range(len(names))),
            split_of_image=tuple(split_of.values()),
            captions=tuple(row.caption for row in rows),
            tokens=tuple(tuple(tokenize(row.caption, tokenizer)) for row in rows),
            caption_ids=tuple(range(len(rows))),
            image_of_caption=np.array([position[row.image] for row in rows], dtype=np.int64),
            tokenizer=tokenizer,
        )
    except CapbenchError as error:
        raise CapbenchError(f"{path}: {error}") from error


def _checked(path: Path, rows: Iterable[Row]) -> list[Row]:
    kept: list[Row] = []
    first: dict[str, Row] = {}
    for row in rows:
        place, known = f"{path}, line {row.line}", first.setdefault(row.image, row)
        if fault := path_fault(row.image):
            raise CapbenchError(
                f"{place}: the image {textwrap.shorten(repr(row.image), 60)} {fault}; correct it, or the columns"
            )
        if row.split not in SPLITS:
            raise CapbenchError(f"{place}: the split is {row.split!r}; write {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")
        if not row.caption.strip():
            raise CapbenchError(f"{place}: the caption of {row.image} is empty; write one, or delete the row")
        if row.split != known.split:
            where = f"in {row.split} here and in {known.split} on line {known.line}"
            raise CapbenchError(f"{place}: the image {row.image} is {where}; an image is in one split")
        kept.append(row)
    return kept


def _of_csv(path: Path) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(decoded(read_bytes(path, path), path), newline=""), strict=True)
    try:
        header = [word.strip() for word in next(reader, [])]
        lacking = [column for column in COLUMNS if column not in header]
        if lacking:
            has = ", ".join(map(repr, header)) or "empty"
            wanted = f"name {', '.join(COLUMNS)} there, between commas"
            raise CapbenchError(f"{path}, line 1: there is no column {lacking[0]}; the line is {has}; {wanted}")
        if twice := [column for column in COLUMNS if header.count(column) > 1]:
            raise CapbenchError(f"{path}, line 1: there are {header.count(twice[0])} columns {twice[0]}; keep one")
        image, caption, split = map(header.index, COLUMNS)
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                count = f"{len(fields)} field{'s' * (len(fields) != 1)}, the first line {len(header)}"
                advice = 'put a caption with a comma between double quotes: "A dog, a cat."'
                raise CapbenchError(f"{path}, line {reader.line_num}: it has {count}; {advice}")
            yield Row(reader.line_num, fields[image], one_line(fields[caption]), fields[split].strip())
    except csv.Error as error:
        place = f"{path}, line {reader.line_num}"
        raise CapbenchError(f"{place}: malformed CSV: {error}; look for a double quote that is not closed") from error


class _Entry(Checked):
    image: str
    caption: Annotated[list[Line], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
    split: str


def _of_json_lines(path: Path) -> Iterator[Row]:
    for line, entry in read_json_lines(path, _Entry):
        if not entry.caption:
            raise CapbenchError(f"{path}, line {line}: the list of captions is empty; write one, or delete the line")
        yield from (Row(line, entry.image, caption, entry.split) for caption in entry.caption)
