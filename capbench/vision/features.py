"""The feature store: an encoder's features of every image of a data set, computed once."""

from __future__ import annotations

import itertools
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capbench.base.cache import cache_folder
from capbench.base.errors import CapbenchError, listed
from capbench.base.files import NO_ARRAYS, check_writable, fingerprint, locked, sha256
from capbench.base.npy import load_npy
from capbench.base.progress import Report, reporter
from capbench.data.images import Pictures, sample_of
from capbench.vision.encoders import Encoder, Output
from capbench.vision.extraction import COUNT, STATE, View, check_sizes, extract
from capbench.vision.regions import PROVIDERS, Boxes, Provider, region_boxes

VERSION = 1  # of the path from pixels to features and of the folder's layout: a change makes new features
LOCK_SECONDS = 1800.0  # longest wait for another process that makes the same features


@dataclass(frozen=True)
class Features:
    """Features of every image of a data set, in its order."""

    # Read-only memory map, float32 [image, dim], [image, location, dim] or [image, region, dim].
    array: NDArray[np.float32]
    path: Path
    fingerprint: str  # of everything that made them
    skipped: tuple[str, ...] = ()  # names of images that could not be decoded; their rows are NaN
    boxes: Boxes | None = None  # the places of the regions
    imported: str = ""  # what was imported, in words; empty where an encoder made them
    made_of: Mapping[str, Any] = field(default_factory=dict)  # what the fingerprint covers, where an encoder made them
    pictures: str = ""  # `sample_of` the pictures; empty where it is not known


def features(
    dataset: Pictures,
    encoder: Encoder,
    view: View = "1C",
    region_provider: Provider | None = None,
    *,
    store: Path | None = None,
    progress: Report | bool | None = None,
    tolerant: bool = False,
) -> Features:
    """The features of `dataset` in `<store>/features/<fingerprint>/` (default: the cache folder), made if absent.

    `view`: "1C" is the centre crop (so is "RC", whose random crops only training sees), "10C" the mean vector of ten
    crops, "whole" the image squeezed to a square, "views" the mean vector of "whole" at two sizes, plain and mirrored.
    An encoder of regions takes a `region_provider` instead (see `region_boxes`) and gives [image, 20, dim]: the whole
    image and 19 boxes, from one map of the squeezed image.

    The fingerprint covers images, weights, layer, view, boxes, number format and code version. Features that fail their
    SHA-256 are set aside and made again, with a warning. Those of other pictures of the same names and sizes, and those
    that left out a picture which can be decoded now, are made again too. Of two processes one works and the other
    waits. `progress` draws a bar (True) or is called with (images done, images). With `tolerant`, undecodable images
    are left out, listed in `skipped` and warned about; boxes from a file or a detector need every image.

    Raises CapbenchError for missing or undecodable images, a view that is undefined or that the network cannot take, a
    folder that cannot be written, and a wait longer than `LOCK_SECONDS`; StoppedError after a signal to stop. Whatever
    it was that ended the work, the next call continues it.

    >>> from capbench.data.scenes import scenes
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as store:
    ...     features(scenes(train=4, val=0, test=0), Encoder("scenes"), store=Path(store)).array.shape
    (4, 512)
    """
    _check(encoder.output, view, region_provider)
    boxes = None if region_provider is None else region_boxes(dataset, region_provider, store, progress)
    spec = _spec(dataset, encoder, region_provider or view, boxes)
    folder = (store or cache_folder()) / "features" / fingerprint(spec)

    def fill(part: Path) -> tuple[list[int], list[str]]:
        dataset.images.check()
        folded = encoder if encoder.folded else encoder.fold()
        if boxes is None:
            check_sizes(folded, view)
        with reporter(progress, f"features of {dataset.name}") as report:
            return extract(part, dataset, folded, "whole" if boxes else view, boxes, report, tolerant)

    def current(set_aside: bool) -> Features | None:
        found = _open(folder, set_aside)
        reason = "" if found is None else _outdated(found, dataset, tolerant)
        if reason and set_aside:
            folder.rename(folder.with_name(f".{folder.name}.outdated"))  # `_make` removes it
            warnings.warn(f"the features in {folder} are made again: {reason}", stacklevel=3)
        return None if reason else found

    stored = current(set_aside=False)
    if stored is None:
        check_writable(folder.parent)
        with locked(folder.with_name(f"{folder.name}.lock"), LOCK_SECONDS):
            stored = current(set_aside=True)
            if stored is None:
                _make(folder, spec, sample_of(dataset.images), fill)
                stored = _open(folder)
                if stored is not None and stored.skipped:
                    warnings.warn(_undecodable(dataset, stored.skipped), stacklevel=2)
    if stored is None:
        raise CapbenchError(f"the features just written to {folder} do not read back; check the disk")
    return replace(stored, boxes=boxes)


def stored_features(name: str, store: Path | None = None) -> Features | None:
    """Features by their fingerprint, without the boxes of regions; None where they are not in the store or damaged."""
    return _open((store or cache_folder()) / "features" / name)


def pictures_of(name: str, store: Path | None = None) -> str | None:
    """The fingerprint of the pictures that features were made of, by theirs; None where they are not in the store."""
    try:
        meta = json.loads(((store or cache_folder()) / "features" / name / "meta.json").read_text())
        return str(meta["spec"]["images"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check(output: Output, view: str, region_provider: str | None) -> None:
    wanted, given, known = "region_provider", region_provider, PROVIDERS
    if output != "regions":
        if region_provider is not None:
            raise CapbenchError(f"an encoder of output {output!r} takes a view, not a region_provider")
        wanted, given = "view", view
        known = tuple(name for name, count in COUNT.items() if output == "vector" or count == 1)
    if given not in known:
        raise CapbenchError(
            f"features of output {output!r} with {wanted} {given!r} are not defined; take {', '.join(known)}"
        )


def _spec(dataset: Pictures, encoder: Encoder, crop: str, boxes: Boxes | None) -> dict[str, Any]:
    """What the fingerprint covers. Records name features by it: its keys and values never change."""
    device = encoder.mean.device.type
    spec = {
        "images": dataset.images.fingerprint,
        "encoder": encoder.fingerprint,
        "name": encoder.name,
        "output": encoder.output,
        "layer": encoder.layer,
        "crop": "1C" if crop == "RC" else crop,
        "size": encoder.input_size,
        "computed_in": str(encoder.compute_dtype).removeprefix("torch.") + ("" if device == "cpu" else f" on {device}"),
        "version": VERSION,
    }
    return spec if boxes is None else spec | {"boxes": boxes.fingerprint}


def _undecodable(dataset: Pictures, names: Sequence[str]) -> str:
    return f"{len(names)} images of {dataset.name} could not be decoded and have no features: {listed(names)}"


def _outdated(stored: Features, dataset: Pictures, tolerant: bool) -> str:
    """Why stored features are not those of the present pictures; empty if they are.

    Raises CapbenchError for features without an image that cannot be decoded now either, unless `tolerant`.
    """
    by_content = not sample_of(dataset.images)  # then the fingerprint itself says that nothing was repaired
    repaired = [] if by_content else [name for name in stored.skipped if _decodes(dataset, name)]
    bad = [name for name in stored.skipped if name not in repaired]
    if bad and not tolerant:
        raise CapbenchError(f"{_undecodable(dataset, bad)}; repair them, or leave them out with --tolerant")
    if repaired:
        return f"images that were left out can be decoded now: {listed(repaired)}"
    if stored.pictures and stored.pictures != sample_of(dataset.images):
        return f"they are of other images, which had the names and sizes of those of {dataset.name}"
    return ""


def _decodes(dataset: Pictures, name: str) -> bool:
    try:
        dataset.images[dataset.image_names.index(name)]
    except CapbenchError:
        return False
    return True


def _open(folder: Path, set_aside: bool = False) -> Features | None:
    """The stored features; None if there are none, or damaged ones, which `set_aside` renames."""
    if not folder.is_dir():
        return None
    path = folder / "features.npy"
    try:
        meta = json.loads((folder / "meta.json").read_text())
        array = load_npy(path, mmap_mode="r")
        intact = (
            list(array.shape) == meta["shape"]
            and array.dtype == np.float32
            and fingerprint(meta["spec"]) == folder.name
            and sha256(path) == meta["sha256"]
        )
        if intact:
            pictures = str(meta.get("pictures", ""))
            return Features(array, path, folder.name, tuple(meta["skipped"]), made_of=meta["spec"], pictures=pictures)
        reason = "their checksum or shape differs"
    except (*NO_ARRAYS, TypeError) as error:
        reason = str(error)
    if set_aside:
        names = (folder.with_name(f"{folder.name}.corrupt-{n}") for n in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        folder.rename(aside)
        warnings.warn(f"the features in {folder} are damaged ({reason}); set aside as {aside.name}", stacklevel=3)
    return None


def _make(
    folder: Path, spec: dict[str, Any], pictures: str, fill: Callable[[Path], tuple[list[int], list[str]]]
) -> None:
    """Let `fill` write the features beside their place, then rename the folder.

    Where anything ends that, the batches that `fill` has saved stay, to be continued.
    """
    part = folder.with_name(f".{folder.name}.part")
    for remains in folder.parent.glob(f".{folder.name}.*"):  # of a process that died: we hold the lock
        if remains != part:
            shutil.rmtree(remains, ignore_errors=True)
    try:
        part.mkdir(exist_ok=True)
        shape, skipped = fill(part)
        digest = sha256(part / "features.npy")
        meta = {"shape": shape, "dtype": "float32", "sha256": digest, "skipped": skipped, "spec": spec}
        meta |= {"pictures": pictures} if pictures else {}
        (part / "meta.json").write_text(json.dumps(meta, indent=1))
        part.chmod(0o755)
        (part / STATE).unlink(missing_ok=True)
        part.rename(folder)
    except BaseException as error:
        if not (part / STATE).is_file():
            shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError):
            raise CapbenchError(f"cannot write {folder}: {error.strerror or error}") from error
        raise
