"""The feature store: what an encoder makes of every image of a data set, computed once."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Float, UInt8
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from capbench.data.captions import CaptionDataset
from capbench.data.images import mirrored, one_crop, ten_crops, whole_image
from capbench.encoders import Encoder
from capbench.errors import CapbenchError
from capbench.files import check_writable, fingerprint, sha256
from capbench.weights import cache_folder

Crop = Literal["1C", "10C", "whole", "views"]
Report = Callable[[int, int], None]

# What an encoder sees of an image: stacks uint8 [crop, 3, side, side], a stack for each side. Views are the whole image
# and its mirror at the encoder's own size and at 9/7 of it.
CROPS: dict[str, Callable[[NDArray[np.uint8], int], tuple[Tensor, ...]]] = {
    "1C": lambda image, size: (one_crop(image, size)[None],),
    "10C": lambda image, size: (ten_crops(image, size),),
    "whole": lambda image, size: (whole_image(image, size)[None],),
    "views": lambda image, size: (mirrored(image, size), mirrored(image, size * 9 // 7)),
}
COUNT = {"1C": 1, "10C": 10, "whole": 1, "views": 4}
VERSION = 1  # of the pixels' way to the encoder and of the layout below: a change makes new features
LOCK_SECONDS = 1800.0  # longest wait for another process that makes the same features
LISTED = 20


@dataclass(frozen=True)
class Features:
    """Features of every image of a data set, in its order.

    `array` is a read-only memory map, float32 [image, dim] or [image, location, dim]; the rows of
    `skipped`, the names of images that could not be decoded, are NaN. `fingerprint` stands for all that
    made them.
    """

    array: NDArray[np.float32]
    path: Path
    fingerprint: str
    skipped: tuple[str, ...] = ()


def features(
    dataset: CaptionDataset,
    encoder: Encoder,
    crop: Crop = "1C",
    store: Path | None = None,
    progress: Report | bool | None = None,
    tolerant: bool = False,
) -> Features:
    """Open the features of `dataset`, or make and keep them.

    "1C" is the centre crop, "10C" the mean of the vectors of ten crops, "whole" the whole image squeezed
    to a square, "views" the mean of its vectors at two sizes, as it is and mirrored. They lie in
    `<store>/features/<fingerprint>/`, where `store` defaults to $CAPBENCH_CACHE or `~/.cache/capbench`; the
    fingerprint covers the images, the weights, the layer, the crop, the number format and the version of
    this code. They are checked against their SHA-256 when opened; damaged ones are set aside and made
    again, with a warning. Two processes may ask at once: one works, the other waits.

    `progress` draws a bar (True) or is called with (images done, images). An image that cannot be decoded
    raises, or with `tolerant` is left out, listed in `skipped` and warned about. Raises CapbenchError also
    for missing images, for an unknown crop, for a folder that cannot be written, and when the wait for
    another process exceeds `LOCK_SECONDS`.
    """
    if crop not in get_args(Crop):
        raise CapbenchError(f"the crop is {' or '.join(get_args(Crop))}, not {crop!r}")
    if encoder.output == "regions" or (encoder.output == "grid" and COUNT[crop] > 1):
        raise CapbenchError(f"features of output {encoder.output!r} and crop {crop!r} are not defined")
    computed_in = str(encoder.compute_dtype).removeprefix("torch.")
    if encoder.mean.device.type != "cpu":
        computed_in += f" on {encoder.mean.device.type}"
    spec = {
        "images": dataset.images.fingerprint,
        "encoder": encoder.fingerprint,
        "name": encoder.name,
        "output": encoder.output,
        "layer": encoder.layer,
        "crop": crop,
        "size": encoder.input_size,
        "computed_in": computed_in,
        "version": VERSION,
    }
    key = fingerprint(spec)
    root = (store or cache_folder()) / "features"
    folder = root / key
    found = _open(folder, key)
    if found is None:
        check_writable(root)
        with _locked(root / f"{key}.lock"):
            found = _open(folder, key, set_aside=True)
            if found is None:
                dataset.images.check()
                _make(folder, dataset, encoder if encoder.folded else encoder.fold(), crop, spec, progress, tolerant)
                found = _open(folder, key)
    if found is None:
        raise CapbenchError(f"the features just written to {folder} do not read back; check the disk")
    if found.skipped and not tolerant:
        raise CapbenchError(
            f"{len(found.skipped)} images of {dataset.name} have no features, they could not be decoded: "
            f"{', '.join(found.skipped[:LISTED])}; mend them, or ask for tolerant features"
        )
    return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A lock between processes, waited for with a limit. The system frees the lock of a process that died."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise CapbenchError(
            f"another process has held {path} for {LOCK_SECONDS:g} s; wait for it or end it, and if there is "
            "none, delete the file"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _open(folder: Path, key: str, set_aside: bool = False) -> Features | None:
    """The stored features, or None where there are none or damaged ones, which are moved away if asked."""
    if not folder.is_dir():
        return None
    path = folder / "features.npy"
    try:
        meta = json.loads((folder / "meta.json").read_text())
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        right = (
            list(array.shape) == meta["shape"]
            and array.dtype == np.float32
            and fingerprint(meta["spec"]) == key
            and sha256(path) == meta["sha256"]
        )
        if right:
            return Features(array, path, key, tuple(meta["skipped"]))
        reason = "their checksum or shape differs"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error)
    if set_aside:
        names = (folder.with_name(f"{folder.name}.corrupt-{n}") for n in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        folder.rename(aside)
        warnings.warn(f"the features in {folder} are damaged ({reason}); set aside as {aside.name}", stacklevel=3)
    return None


def _make(
    folder: Path,
    dataset: CaptionDataset,
    encoder: Encoder,
    crop: Crop,
    spec: dict[str, Any],
    progress: Report | bool | None,
    tolerant: bool,
) -> None:
    """Write the features beside their place, then rename the folder."""
    for left in folder.parent.glob(f".{folder.name}.*"):  # of a process that died: we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        with _reporter(progress, dataset.name) as report:
            shape, skipped = _write(part / "features.npy", dataset, encoder, crop, report, tolerant)
        if skipped:
            warnings.warn(
                f"{len(skipped)} images of {dataset.name} could not be decoded and have no features: "
                f"{', '.join(skipped[:LISTED])}",
                stacklevel=4,
            )
        meta = {
            "shape": shape,
            "dtype": "float32",
            "sha256": sha256(part / "features.npy"),
            "skipped": skipped,
            "spec": spec,
        }
        (part / "meta.json").write_text(json.dumps(meta, indent=1))
        part.chmod(0o755)
        part.rename(folder)
    except OSError as error:
        raise CapbenchError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(
    path: Path, dataset: CaptionDataset, encoder: Encoder, crop: Crop, report: Report, tolerant: bool
) -> tuple[list[int], list[str]]:
    """Fill the file a batch at a time; returns the shape and the names of the images left out.

    On a processor each thread decodes and encodes batches of its own with single-threaded operations, which
    is faster than sharing each operation and does not collapse when another job runs. On a GPU the threads
    decode and the encoder takes its turns.
    """
    total, device = len(dataset.images), encoder.mean.device
    on_cpu = device.type == "cpu"
    size = max(1, (8 if on_cpu else 128) // COUNT[crop])
    threads = torch.get_num_threads()
    lock, turn = threading.Lock(), nullcontext() if on_cpu else threading.Lock()
    array: NDArray[np.float32] | None = None
    skipped: list[int] = []
    done = 0

    def work(first: int) -> None:
        nonlocal array, done
        batch = range(first, min(first + size, total))
        rows, stacks = _decoded(dataset, batch, encoder.input_size, crop, tolerant)
        encoded = None
        if rows:
            with turn:
                encoded = encode(encoder, [stack.to(device) for stack in stacks]).cpu().numpy()
        with lock:
            if encoded is not None:
                if array is None:
                    array = _new_array(path, (total, *encoded.shape[1:]))
                array[rows] = encoded
            skipped.extend(set(batch) - set(rows))
            done += len(batch)
            report(done, total)

    try:
        workers = threads if on_cpu else min(16, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(work, range(0, total, size)):
                pass
    finally:
        torch.set_num_threads(threads)
    if array is None:
        raise CapbenchError(f"no image of {dataset.name} could be decoded; check the image folder")
    skipped.sort()
    array[skipped] = np.nan
    array.flush()  # type: ignore[attr-defined]
    return list(array.shape), [dataset.image_names[i] for i in skipped]


def _new_array(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    array: NDArray[np.float32] = open_memmap(path, "w+", np.float32, shape)
    if hasattr(os, "posix_fallocate"):  # else a full disk would kill the process at a later write to the map
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _decoded(
    dataset: CaptionDataset, batch: range, size: int, crop: Crop, tolerant: bool
) -> tuple[list[int], list[Tensor]]:
    """The rows of a batch that decode, and their stacks of crops."""
    rows, pictures = [], []
    for i in batch:
        try:
            image = dataset.images[i]
        except CapbenchError:
            if not tolerant:
                raise
            continue
        rows.append(i)
        pictures.append(image)
    return rows, stacked(pictures, size, crop)


def stacked(
    pictures: Sequence[NDArray[np.uint8]], size: int, crop: Crop
) -> list[UInt8[Tensor, "image crop 3 side side"]]:
    """The crops of some pictures, as `encode` takes them: a stack for each side."""
    return [torch.stack(parts) for parts in zip(*(CROPS[crop](image, size) for image in pictures), strict=True)]


@torch.inference_mode()
def encode(encoder: Encoder, stacks: Sequence[Tensor]) -> Float[Tensor, "image ... dim"]:
    """The mean of the encoder's vectors over all crops of each image, or its grid where there is one crop.

    `stacks` are those of `stacked`, on the encoder's device.
    """
    vectors = [encoder(stack.flatten(0, 1)).unflatten(0, stack.shape[:2]) for stack in stacks]
    return torch.cat(vectors, 1).mean(1)


@contextmanager
def _reporter(progress: Report | bool | None, name: str) -> Iterator[Report]:
    if callable(progress):
        yield progress
        return
    start = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    speed = TextColumn("{task.fields[speed]:.0f} images/s")
    with Progress(*columns, speed, disable=not progress) as bar:
        task = bar.add_task(f"features of {name}", total=None, speed=0.0)
        yield lambda done, total: bar.update(
            task, completed=done, total=total, speed=done / (time.perf_counter() - start)
        )
