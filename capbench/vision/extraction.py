"""What an encoder makes of many images: views, batches, threads, and what an interrupted call leaves to the next."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from capbench.base.errors import CapbenchError, StoppedError
from capbench.base.files import atomic_write
from capbench.base.progress import Report
from capbench.base.signals import stop_requests
from capbench.data.images import Pictures, mirrored, one_crop, sample_of, ten_crops, whole_image
from capbench.vision.encoders import Encoder
from capbench.vision.regions import Boxes

View = Literal["1C", "10C", "whole", "views", "RC"]

# What an encoder sees of an image: stacks uint8 [view, 3, side, side], one for each side in pixels.
VIEWS: dict[str, Callable[[NDArray[np.uint8], int], tuple[Tensor, ...]]] = {
    "1C": lambda image, size: (one_crop(image, size)[None],),
    "10C": lambda image, size: (ten_crops(image, size),),
    "whole": lambda image, size: (whole_image(image, size)[None],),
    "views": lambda image, size: (mirrored(image, size), mirrored(image, size * 9 // 7)),
}
VIEWS["RC"] = VIEWS["1C"]  # training crops at random; everything else sees the centre
COUNT = {"1C": 1, "10C": 10, "whole": 1, "views": 4, "RC": 1}
SAVE_SECONDS = 60.0  # between two saves of unfinished work
STATE = "done.json"  # beside unfinished features: which of their batches are complete


def check_sizes(encoder: Encoder, view: View) -> None:
    """Raises CapbenchError for a view that shows images of another size than the network takes."""
    for stack in VIEWS[view](np.zeros((2, 2, 3), np.uint8), encoder.input_size):
        side = stack.shape[-1]
        try:
            if side != encoder.input_size:
                encode(encoder, [stack[None]], None)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise CapbenchError(
                f"{encoder.name} takes images of {encoder.input_size} pixels, and the view {view} shows some of {side} "
                f"({str(error).splitlines()[0]}); choose a view of one size, as with --set view=whole of a run"
            ) from error


@torch.inference_mode()
def encode(
    encoder: Encoder,
    stacks: Sequence[UInt8[Tensor, "image view 3 _ _"]],
    boxes: Float32[np.ndarray, "image region 4"] | None,
) -> Float32[np.ndarray, "image ... dim"]:
    """The encoder's regions if there are `boxes`, its grid of a single view, or its mean vector over all views.

    `stacks` are images in `VIEWS`; `boxes` are fractions of the image as in `Boxes`.
    """
    stacks = [stack.to(encoder.mean.device) for stack in stacks]
    if boxes is not None:
        places = torch.from_numpy(boxes).to(encoder.mean.device)
        encoded = encoder.regions(stacks[0][:, 0], places * stacks[0].shape[-1])
    else:
        vectors = [encoder(stack.flatten(0, 1)).unflatten(0, stack.shape[:2]) for stack in stacks]
        encoded = torch.cat(vectors, 1).mean(1)
    return encoded.cpu().numpy()


def extract(
    folder: Path,
    pictures: Pictures,
    encoder: Encoder,
    view: View,
    boxes: Boxes | None,
    report: Report,
    tolerant: bool,
) -> tuple[list[int], list[str]]:
    """Write `features.npy` into `folder`; return its shape and the names of the undecodable images, whose rows are NaN.

    Batches that a call saved in `folder` before it was interrupted or failed are kept; the bits are those of one call.
    `STATE` stays beside the features, so that they can be continued until the caller removes it. On a CPU each thread
    decodes and encodes its own batches with single-threaded operations: faster than to share each operation, and no
    collapse beside another job. On a GPU the threads decode and the encoder takes turns.

    Raises CapbenchError for an undecodable image unless `tolerant`, and if no image can be decoded; StoppedError after
    Ctrl-C or another signal of `stop_requests`, when the batches in work are finished and saved.
    """
    total, on_cpu = len(pictures.images), encoder.mean.device.type == "cpu"
    size = max(1, (8 if on_cpu else 128) // (COUNT[view] if boxes is None else 4))  # a region is a small part of a map
    partial = _Partial(folder, total, size, sample_of(pictures.images))
    lock, turn = threading.Lock(), nullcontext() if on_cpu else threading.Lock()
    skipped: list[int] = []
    looked_at = total - sum(min(size, total - first) for first in partial.to_do())

    def work(first: int) -> None:
        nonlocal looked_at
        if stop_requested():
            raise StoppedError
        batch = range(first, min(first + size, total))
        views = _views(pictures, batch, view, encoder.input_size, tolerant)
        encoded = None
        if views:
            stacks = [torch.stack(images) for images in zip(*views.values(), strict=True)]
            with turn:
                encoded = encode(encoder, stacks, None if boxes is None else boxes.array[list(views)])
        with lock:
            partial.add(first, list(views), encoded, complete=len(views) == len(batch))
            skipped.extend(set(batch) - set(views))
            looked_at += len(batch)
            report(looked_at, total)

    threads = torch.get_num_threads()
    workers = threads if on_cpu else min(16, os.cpu_count() or 1)
    try:
        with (
            stop_requests() as stop_requested,
            ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            for _ in pool.map(work, partial.to_do()):
                if time.monotonic() > partial.saved_at + SAVE_SECONDS:
                    with lock:
                        partial.save()
            if stop_requested():
                raise StoppedError
    except BaseException as error:
        with lock:
            partial.save()
        if isinstance(error, KeyboardInterrupt):
            raise StoppedError from error
        raise
    finally:
        torch.set_num_threads(threads)
    if partial.array is None:
        raise CapbenchError(f"no image of {pictures.name} could be decoded; check the image folder")
    skipped.sort()
    partial.array[skipped] = np.nan
    partial.save()
    return list(partial.array.shape), [pictures.image_names[i] for i in skipped]


def _views(
    pictures: Pictures, batch: range, view: View, size: int, tolerant: bool
) -> dict[int, tuple[UInt8[Tensor, "crop 3 side side"], ...]]:
    """The views of each image of a batch that can be decoded, by its number."""
    views = {}
    for row in batch:
        try:
            views[row] = VIEWS[view](pictures.images[row], size)
        except CapbenchError:
            if not tolerant:
                raise
    return views


class _Partial:
    """An unfinished `features.npy` of the pictures with this `sample_of`, and `STATE` beside it."""

    array: NDArray[np.float32] | None = None

    def __init__(self, folder: Path, total: int, size: int, sample: str) -> None:
        self.path, self.state = folder / "features.npy", folder / STATE
        self.total, self.size, self.sample = total, size, sample
        self.done: set[int] = set()  # the first image of each complete batch
        self.saved_at = time.monotonic()
        with suppress(OSError, ValueError, KeyError, TypeError):  # then there is nothing to continue
            saved = json.loads(self.state.read_text())
            if saved["size"] == size and saved.get("pictures", sample) == sample:
                self.array = open_memmap(self.path, "r+")
                self.done = set(saved["done"])

    def to_do(self) -> list[int]:
        return [first for first in range(0, self.total, self.size) if first not in self.done]

    def add(self, first: int, rows: list[int], encoded: NDArray[np.float32] | None, complete: bool) -> None:
        if encoded is not None:
            if self.array is None:
                self.state.unlink(missing_ok=True)  # of another array
                array = open_memmap(self.path, "w+", np.float32, (self.total, *encoded.shape[1:]))
                if hasattr(os, "posix_fallocate"):  # a full disk would kill the process at a later write to the map
                    with self.path.open("r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, self.path.stat().st_size)
                self.array = array
            self.array[rows] = encoded
        if complete:
            self.done.add(first)

    def save(self) -> None:
        """Put the array on the disk, then the list of its batches, if there are any."""
        if self.array is not None:
            self.array.flush()  # type: ignore[attr-defined]
        if self.done:
            state = {"size": self.size, "done": sorted(self.done), "pictures": self.sample}
            atomic_write(self.state, json.dumps(state).encode())
        self.saved_at = time.monotonic()
