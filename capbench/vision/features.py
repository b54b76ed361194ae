"""The feature store: what an encoder makes of every image of a data set, computed once."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from capbench.base.cache import cache_folder
from capbench.base.errors import CapbenchError
from capbench.base.files import check_writable, fingerprint, locked, sha256
from capbench.base.progress import Report, reporter
from capbench.data.captions import CaptionDataset
from capbench.data.images import mirrored, one_crop, ten_crops, whole_image
from capbench.vision.encoders import Encoder, Output
from capbench.vision.regions import PROVIDERS, Boxes, Provider, region_boxes

Crop = Literal["1C", "10C", "whole", "views"] | Provider

# What an encoder sees of an image: stacks uint8 [crop, 3, side, side], a stack for each side. Views are the whole image
# and its mirror at the encoder's own size and at 9/7 of it. Regions are taken out of "whole".
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

    `array` is a read-only memory map, float32 [image, dim], [image, location, dim] or [image, region, dim]; the
    rows of `skipped`, the names of images that could not be decoded, are NaN. `fingerprint` stands for all that
    made them, and `boxes` are the places of the regions, where they are regions.
    """

    array: NDArray[np.float32]
    path: Path
    fingerprint: str
    skipped: tuple[str, ...] = ()
    boxes: Boxes | None = None


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
    to a square, "views" the mean of its vectors at two sizes, as it is and mirrored. For an encoder of regions the crop
    is the provider of their boxes (see `capbench.vision.regions.region_boxes`): the features are [image, 20, dim], the
    vectors of the whole image and of 19 boxes in it, taken out of one map of the squeezed image. They lie in
    `<store>/features/<fingerprint>/`, where `store` defaults to $CAPBENCH_CACHE or `~/.cache/capbench`; the
    fingerprint covers the images, the weights, the layer, the crop, the boxes, the number format and the version of
    this code. They are checked against their SHA-256 when opened; damaged ones are set aside and made
    again, with a warning. Two processes may ask at once: one works, the other waits.

    `progress` draws a bar (True) or is called with (images done, images). An image that cannot be decoded
    raises, or with `tolerant` is left out, listed in `skipped` and warned about (but boxes of a file or a detector need
    every image). Raises CapbenchError also
    for missing images, for an unknown crop, for a folder that cannot be written, and when the wait for
    another process exceeds `LOCK_SECONDS`.
    """
    _check(encoder.output, crop)
    boxes = region_boxes(dataset, crop, store, progress) if encoder.output == "regions" else None
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
    if boxes is not None:
        spec["boxes"] = boxes.fingerprint
    key = fingerprint(spec)
    root = (store or cache_folder()) / "features"
    folder = root / key
    found = _open(folder, key)
    if found is None:
        check_writable(root)
        with locked(root / f"{key}.lock", LOCK_SECONDS):
            found = _open(folder, key, set_aside=True)
            if found is None:
                dataset.images.check()
                folded = encoder if encoder.folded else encoder.fold()
                _make(folder, dataset, folded, crop, boxes, spec, progress, tolerant)
                found = _open(folder, key)
    if found is None:
        raise CapbenchError(f"the features just written to {folder} do not read back; check the disk")
    if found.skipped and not tolerant:
        raise CapbenchError(
            f"{len(found.skipped)} images of {dataset.name} have no features, they could not be decoded: "
            f"{', '.join(found.skipped[:LISTED])}; mend them, or ask for tolerant features"
        )
    return replace(found, boxes=boxes)


def _check(output: Output, crop: Crop) -> None:
    if crop not in (*CROPS, *PROVIDERS):
        raise CapbenchError(f"the crop is {' or '.join(CROPS)}, or for regions {' or '.join(PROVIDERS)}, not {crop!r}")
    if output == "regions":
        fitting = list(PROVIDERS)
    else:
        fitting = [name for name in CROPS if output == "vector" or COUNT[name] == 1]
    if crop not in fitting:
        raise CapbenchError(
            f"features of output {output!r} and crop {crop!r} are not defined; for {output} take {', '.join(fitting)}"
        )


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
    boxes: Boxes | None,
    spec: dict[str, Any],
    progress: Report | bool | None,
    tolerant: bool,
) -> None:
    """Write the features beside their place, then rename the folder."""
    for left in folder.parent.glob(f".{folder.name}.*"):  # of a process that died: we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        with reporter(progress, f"features of {dataset.name}") as report:
            shape, skipped = _write(part / "features.npy", dataset, encoder, crop, boxes, report, tolerant)
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
    path: Path,
    dataset: CaptionDataset,
    encoder: Encoder,
    crop: Crop,
    boxes: Boxes | None,
    report: Report,
    tolerant: bool,
) -> tuple[list[int], list[str]]:
    """Fill the file a batch at a time; returns the shape and the names of the images left out.

    On a processor each thread decodes and encodes batches of its own with single-threaded operations, which
    is faster than sharing each operation and does not collapse when another job runs. On a GPU the threads
    decode and the encoder takes its turns.
    """
    total, device = len(dataset.images), encoder.mean.device
    on_cpu = device.type == "cpu"
    size = max(1, (8 if on_cpu else 128) // (COUNT[crop] if boxes is None else 4))  # a region is a small part of a map
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
            places = None if boxes is None else torch.from_numpy(boxes.array[rows]).to(device)
            with turn:
                encoded = encode(encoder, [stack.to(device) for stack in stacks], places).cpu().numpy()
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
    """The crops of some pictures, as `encode` takes them: a stack for each side; for regions the whole image."""
    cut = CROPS["whole" if crop in PROVIDERS else crop]
    return [torch.stack(parts) for parts in zip(*(cut(image, size) for image in pictures), strict=True)]


@torch.inference_mode()
def encode(
    encoder: Encoder, stacks: Sequence[Tensor], boxes: Float[Tensor, "image region 4"] | None = None
) -> Float[Tensor, "image ... dim"]:
    """The mean of the encoder's vectors over all crops of each image, its grid where there is one crop, or its regions.

    `stacks` are those of `stacked` and `boxes` fractions of the image as in `Boxes`, on the encoder's device.
    """
    if boxes is not None:
        return encoder.regions(stacks[0][:, 0], boxes * stacks[0].shape[-1])
    vectors = [encoder(stack.flatten(0, 1)).unflatten(0, stack.shape[:2]) for stack in stacks]
    return torch.cat(vectors, 1).mean(1)
