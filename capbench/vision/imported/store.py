"""Imported features in the store: found by the fingerprint of the data set and a name."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from capbench.base.cache import cache_folder
from capbench.base.errors import CapbenchError
from capbench.base.files import NO_ARRAYS, check_writable, fingerprint, locked, sha256
from capbench.base.npy import load_npy
from capbench.base.progress import Report, reporter
from capbench.data.captions import CaptionDataset
from capbench.data.datasets import WITHOUT_RESTVAL, load_captions
from capbench.vision.encoders import Output
from capbench.vision.features import LOCK_SECONDS, Features
from capbench.vision.imported.butd import open_butd
from capbench.vision.imported.hdf5 import open_h5
from capbench.vision.imported.joining import ELSEWHERE
from capbench.vision.imported.scan import open_scan
from capbench.vision.imported.source import Source
from capbench.vision.networks import IMPORTED
from capbench.vision.regions import WHOLE, Boxes

FORMATS = {"scan": open_scan, "butd": open_butd, "h5": open_h5}
NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Imported:
    """Features that were imported."""

    path: Path
    encoder: str  # their name on the command line
    shape: tuple[int, ...]
    said: tuple[str, ...]  # what was found in the files, and what was kept, a line each


def import_features(
    dataset: CaptionDataset, folder: Path, format: str, name: str | None = None, *,
    store: Path | None = None, progress: Report | bool | None = None,
) -> Imported:  # fmt: skip
    """Copy the features of every image of `dataset` from `folder` into the store, as "file/<name>".

    `format` is "scan" (see `open_scan`), "butd" (`open_butd`) or "h5" (`open_h5`); `name` is the folder's unless given.
    Ids, captions and sizes are checked before anything is written; then one row after the other is read, so that memory
    does not grow with the files. A stop leaves nothing behind. Where an image has several vectors, their mean is put
    before them as the region that is the whole image; where images have different numbers of them, the mean is kept
    alone. Raises CapbenchError naming file, line or row, and image; for a name that is taken; and for a full disk.
    """
    name = folder.resolve().name if name is None else name
    if not NAME.fullmatch(name):
        raise CapbenchError(f"{name!r} is no name for features: take letters, digits, dots, dashes; choose with --name")
    place = _place(dataset, name, store)
    if place.exists():
        raise CapbenchError(f"{IMPORTED}{name} of {dataset.name} exists; choose another --name, or delete {place}")
    # COCO's features come for all its images
    beside = load_captions("coco").image_ids if dataset.name == WITHOUT_RESTVAL else ()
    source = FORMATS[format](dataset, folder, beside)
    check_writable(place.parent)
    with locked(place.with_name(f".{name}.lock"), LOCK_SECONDS):
        part = place.with_name(f".{name}.part")
        shutil.rmtree(part, ignore_errors=True)  # of a process that died: we hold the lock
        try:
            part.mkdir()
            with reporter(progress, f"{IMPORTED}{name} of {dataset.name}") as report:
                _fill(part, dataset, source, report)
            said = (*source.said, _kept(source))
            _describe(part, {"dataset": dataset.fingerprint, "format": format, "said": list(said)})
            part.rename(place)
        except BaseException as error:
            shutil.rmtree(part, ignore_errors=True)
            if isinstance(error, OSError):
                raise CapbenchError(f"cannot write {place}: {error.strerror or error}") from error
            raise
    return Imported(place, IMPORTED + name, _shape(dataset, source), said)


def imported_features(dataset: CaptionDataset, encoder: str, output: Output, store: Path | None = None) -> Features:
    """The imported features "file/<name>" as what an encoder of `output` gives.

    "vector" is a single vector, or the mean of the regions; "grid" [image, region, dim] is the regions; "regions"
    [image, 1 + region, dim] puts their mean before them, as the whole image. Raises CapbenchError with the names that
    there are, for damaged files, and for a grid or regions where images have one vector or different numbers of them.
    """
    place = check_imported(dataset, encoder, store)
    meta, array = _open(place, dataset)
    if output != "vector" and array.ndim == 2:
        raise CapbenchError(
            f"{encoder} has one vector an image ({meta['said'][-1]}), and this model sees a {output.removesuffix('s')} "
            "of several; import features with a fixed number of regions, such as 36, or run a model of one vector"
        )
    boxes = None
    if meta["boxes"] and output == "regions":
        kept = load_npy(place / "boxes.npy")
        whole = np.broadcast_to(np.array(WHOLE, np.float32), (len(kept), 1, 4))
        counts = np.full(len(kept), array.shape[1], np.int64)
        boxes = Boxes(np.concatenate([whole, kept], 1), encoder, counts)
    seen = {"vector": array if array.ndim == 2 else array[:, 0], "grid": array[:, 1:], "regions": array}[output]
    made = fingerprint({**{key: meta[key] for key in ("dataset", "sha256", "boxes")}, "output": output})
    return Features(seen, place / "features.npy", made, boxes=boxes, imported=f"{encoder}: {'; '.join(meta['said'])}")


def check_imported(dataset: CaptionDataset, encoder: str, store: Path | None = None) -> Path:
    """The folder of the imported features "file/<name>". Raises CapbenchError with those that there are."""
    name = encoder.removeprefix(IMPORTED)
    place = _place(dataset, name, store)
    if not NAME.fullmatch(name) or not place.is_dir():
        folders = sorted(place.parent.glob("[!.]*")) if place.parent.is_dir() else []
        known = ", ".join(IMPORTED + folder.name for folder in folders) or "none"
        raise CapbenchError(
            f"no imported features {encoder} of this {dataset.name}; there are {known}. Import with: capbench features "
            f"{shlex.quote(dataset.place or dataset.name)} --from FOLDER --format {'|'.join(FORMATS)} --name {name}"
        )
    return place


def _place(dataset: CaptionDataset, name: str, store: Path | None) -> Path:
    return (store or cache_folder()) / "imported" / dataset.fingerprint / name


def _shape(dataset: CaptionDataset, source: Source) -> tuple[int, ...]:
    low, high = source.regions or (0, 1)
    images = len(dataset.image_names)
    return (images, 1 + high, source.dim) if low == high else (images, source.dim)


def _kept(source: Source) -> str:
    if source.regions is None:
        return f"one vector of {source.dim:,} numbers an image"
    low, high = source.regions
    if low != high:
        return f"{low} to {high} regions an image: their mean of {source.dim:,} numbers is kept alone"
    return f"{low} regions of {source.dim:,} numbers an image{' with their boxes' * source.boxed}, and their mean"


def _fill(folder: Path, dataset: CaptionDataset, source: Source, report: Report) -> None:
    """Write `features.npy`, and `boxes.npy` where each image has as many."""
    shape, total = _shape(dataset, source), len(source.image_of_row)
    free, needed = shutil.disk_usage(folder).free, 4 * int(np.prod(shape))
    if free < needed:
        raise CapbenchError(f"{folder.parent} has {free:,} bytes free, and the features need {needed:,}; make room")
    array = open_memmap(folder / "features.npy", "w+", np.float32, shape)
    if hasattr(os, "posix_fallocate"):  # a full disk would kill the process at a later write to the map
        with (folder / "features.npy").open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, (folder / "features.npy").stat().st_size)
    boxes = np.zeros((shape[0], shape[1] - 1, 4), np.float32) if source.boxed and len(shape) == 3 else None
    written = np.zeros(shape[0], bool)
    for done, (image, row) in enumerate(zip(source.image_of_row.tolist(), source.rows(), strict=True), 1):
        report(done, total)
        if image == ELSEWHERE:
            continue
        values = row.features
        if values.ndim == 2:
            mean = values.mean(0, keepdims=True, dtype=np.float64).astype(np.float32)
            values = mean[0] if len(shape) == 2 else np.concatenate([mean, values])
        if written[image] and not np.array_equal(array[image], values):
            raise CapbenchError(f"{row.place}: another row of {dataset.image_names[image]} differs; keep one")
        array[image], written[image] = values, True
        if boxes is not None and row.boxes is not None:
            boxes[image] = row.boxes
    array.flush()
    if boxes is not None:
        np.save(folder / "boxes.npy", boxes)


def _describe(folder: Path, meta: dict[str, Any]) -> None:
    boxes = folder / "boxes.npy"
    sums = {"sha256": sha256(folder / "features.npy"), "boxes": sha256(boxes) if boxes.exists() else ""}
    (folder / "meta.json").write_text(json.dumps(meta | sums, indent=1))


def _open(place: Path, dataset: CaptionDataset) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """What is written about imported features, and their array. Raises CapbenchError where they are damaged."""
    path, boxes = place / "features.npy", place / "boxes.npy"
    try:
        meta: dict[str, Any] = json.loads((place / "meta.json").read_text())
        array = load_npy(path, mmap_mode="r")
        intact = (
            sha256(path) == meta["sha256"]
            and (not meta["boxes"] or sha256(boxes) == meta["boxes"])
            and meta["dataset"] == dataset.fingerprint
            and len(array) == len(dataset.image_names)
        )
        reason = "" if intact else "a checksum differs"
    except (*NO_ARRAYS, TypeError) as error:
        reason = str(error)
    if reason:
        raise CapbenchError(f"the features in {place} are damaged ({reason}); delete the folder and import them again")
    return meta, array
