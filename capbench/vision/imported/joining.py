"""Which image a row of a file belongs to: by its id, in whichever numbering the file has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int64

from capbench.base.errors import CapbenchError, listed
from capbench.data.captions import CaptionDataset, duplicates

ELSEWHERE = -1  # the row of an image that the data set leaves out


def written(name: object) -> str:
    """An id as it is written."""
    return (name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)).strip()


def plain(name: object) -> str:
    """An id as it is compared: a file name without folder and extension, a number without leading zeros.

    >>> plain("val2014/COCO_val2014_000000000042.jpg"), plain(b"0042"), plain(42)
    ('COCO_val2014_000000000042', '42', '42')
    """
    text = _stem(written(name))
    return text.lstrip("0") or "0" if text.isascii() and text.isdigit() else text


def _stem(name: str) -> str:
    return re.sub(r"\.(jpe?g|png|bmp|gif|webp)$", "", PurePosixPath(name).name, flags=re.IGNORECASE)


def numberings(dataset: CaptionDataset) -> dict[str, Mapping[str, int]]:
    """The ways in which files name the images of a data set, each a table from ids to indices.

    They are COCO's or Karpathy's ids, file names, the numbers that end them (Flickr30K, COCO), and running indices. A
    numbering that gives two images one id is left out.
    """
    stems = [plain(name) for name in dataset.image_names]
    ends = [match[0] if (match := re.search(r"\d+$", stem)) else stem for stem in stems]
    ways: dict[str, Iterable[object]] = {
        "ids of the split file": dataset.image_ids,
        "file names": stems,
        "numbers of the file names": ends,
        "running indices": range(len(stems)),
    }
    tables = {way: {plain(key): image for image, key in enumerate(keys)} for way, keys in ways.items()}
    return {way: table for way, table in tables.items() if len(table) == len(stems)}


def joins(
    ids: Sequence[str], dataset: CaptionDataset, source: Path, beside: Collection[int] = ()
) -> dict[str, Int64[np.ndarray, " row"]]:
    """The image of each id, in every numbering that knows all ids, by its name; equal ones once.

    Ids of images `beside` the data set are `ELSEWHERE`. Raises CapbenchError with the ids that are unknown in the
    numbering that knows most.
    """
    others = set(map(str, beside))
    found: dict[str, Int64[np.ndarray, " row"]] = {}
    unknown: dict[str, list[str]] = {}
    for way, table in numberings(dataset).items():
        aside = others if way == "ids of the split file" else set()
        unknown[way] = [name for name in ids if name not in table and name not in aside]
        joined = np.array([table.get(name, ELSEWHERE) for name in ids], np.int64)
        if not unknown[way] and not any(np.array_equal(joined, other) for other in found.values()):
            found[way] = joined
    if not found:
        way = min(unknown, key=lambda way: len(unknown[way]))
        raise CapbenchError(
            f"{source}: {len(unknown[way]):,} of {len(ids):,} ids are no images of {dataset.name}: "
            f"{listed(unknown[way])} (read as {way}); choose the data set and split file that they were made from"
        )
    return found


def join(
    ids: Sequence[str], dataset: CaptionDataset, source: Path, beside: Collection[int] = ()
) -> tuple[Int64[np.ndarray, " row"], str]:
    """The image of each id, given as it is written, and the numbering in words.

    Ids that are file names to the letter ("0042" of 0042.png) are that, whatever their numbers may be.

    Raises CapbenchError as `joins` and `check_complete` do, for an id that is given twice, and where two numberings
    know all ids and disagree.
    """
    named = _by_file_names(ids, dataset)
    ids = [plain(name) for name in ids] if named is None else ids
    twice = duplicates(ids)
    if twice:
        raise CapbenchError(f"{source}: {len(twice):,} ids are given twice: {listed(twice)}; keep one row of each")
    found = joins(ids, dataset, source, beside) if named is None else {"file names": named}
    if len(found) > 1:
        raise CapbenchError(
            f"{source}: the ids can be read as {' or as '.join(found)}, which are other images; name the rows by the "
            f"images' file names with their endings, as in {dataset.image_names[0]}"
        )
    ((way, image_of_row),) = found.items()
    check_complete(image_of_row, dataset, source)
    return image_of_row, f"{len(ids):,} rows, named by {way}"


def _by_file_names(ids: Sequence[str], dataset: CaptionDataset) -> Int64[np.ndarray, " row"] | None:
    """The image of each id where all are file names to the letter, with or without folder and ending.

    None where they are not, or are all ids of the split file or running indices to the letter too.
    """
    asked = set(ids)
    if any(asked <= set(map(str, numbers)) for numbers in (dataset.image_ids, range(len(dataset.image_names)))):
        return None
    for read in (written, lambda name: PurePosixPath(name).name, _stem):
        table = {read(name): image for image, name in enumerate(dataset.image_names)}
        if len(table) == len(dataset.image_names) and asked <= table.keys():
            return np.array([table[name] for name in ids], np.int64)
    return None


def check_complete(image_of_row: Int64[np.ndarray, " row"], dataset: CaptionDataset, source: Path) -> None:
    """Raises CapbenchError with the images that have no row."""
    present = Counter(image_of_row.tolist())
    missing = [name for image, name in enumerate(dataset.image_names) if image not in present]
    if missing:
        raise CapbenchError(
            f"{source} has no features of {len(missing):,} of {len(dataset.image_names):,} images of {dataset.name}: "
            f"{listed(missing)}; add them"
        )
