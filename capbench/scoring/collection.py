"""Ranks of a collection that memory does not hold: its files are mapped, and its images ranked in shares.

A share is ranked among all captions, and of each caption it counts the images of the share that are ahead. The counts
of all shares add up to the ranks of one pass, whichever process made which.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from capbench.base.errors import CapbenchError, StoppedError
from capbench.base.files import NO_ARRAYS, atomic_write, check_writable, fingerprint
from capbench.base.progress import Report, reporter
from capbench.base.signals import STOP_SIGNALS, stop_requests
from capbench.kernels._arguments import check_unit_length, embeddings
from capbench.kernels.ranks import ranks_of
from capbench.kernels.ranks.exact import Contest
from capbench.metrics.retrieval import Ranks, check_owners
from capbench.scoring.arrays import read_arrays

SHARE = 1024  # images: the captions are read once for so many
SECONDS = 30.0  # between two states on the disk

Part = tuple[slice, Int[np.ndarray, " image"], Int[np.ndarray, " caption"]]  # a share, its ranks, and its counts


@dataclass(frozen=True)
class Collection:
    """Embeddings of images and captions in .npy files, one row each."""

    images: Path
    captions: Path
    owners: Path  # the row of each caption's image
    similarity: str = "cosine"  # or "dot", or "order"

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        return self.images, self.captions, self.owners

    def mapped(self) -> tuple[Float[Tensor, "image dim"], Float[Tensor, "caption dim"], Int[Tensor, " caption"]]:
        """The arrays of embeddings, not read yet, and the owners. Raises CapbenchError for files that are none."""
        images, captions, owners = map(_mapped, (self.images, self.captions, self.owners))
        return embeddings(images, captions, owners.astype(np.int64) if owners.dtype.kind in "iu" else owners)

    def check(self) -> tuple[int, int]:
        """The numbers of images and captions.

        Raises CapbenchError as `mapped` does, for captions of no image, images without a caption, and under the cosine
        for vectors whose length is not 1.
        """
        images, captions, owners = self.mapped()
        try:
            check_owners(len(images), owners)
        except CapbenchError as error:
            raise CapbenchError(f"{self.owners}: {error}") from error
        if self.similarity == "cosine":
            check_unit_length(images=images, captions=captions)
        return len(images), len(captions)

    @property
    def fingerprint(self) -> str:
        """Of the names, sizes and times of the files: their contents are not read."""
        named = {name: str(value) for name, value in asdict(self).items()}
        stats = [path.stat() for path in self.paths]
        return fingerprint([named, SHARE, [[stat.st_size, stat.st_mtime_ns] for stat in stats]])


def _mapped(path: Path) -> np.ndarray:
    if path.suffix != ".npy":
        raise CapbenchError(f"{path} cannot be mapped into memory; save it as .npy with numpy.save")
    array = np.asarray(read_arrays(path, "")[""])
    if not array.dtype.isnative:
        raise CapbenchError(f"{path} has the byte order of other machines; save array.astype(array.dtype.name)")
    return array


@dataclass(eq=False)
class _State:
    """What is counted so far."""

    collection: np.ndarray  # the fingerprint of the files, when they were opened
    done: Bool[np.ndarray, " share"]
    by_image: Int[np.ndarray, " image"]
    by_caption: Int[np.ndarray, " caption"]

    @classmethod
    def new(cls, fingerprint: str, images: int, captions: int) -> _State:
        done = np.zeros(-(-images // SHARE), np.bool_)
        return cls(np.array(fingerprint), done, np.zeros(images, np.int64), np.zeros(captions, np.int64))

    @property
    def todo(self) -> list[slice]:
        starts = (SHARE * np.flatnonzero(~self.done)).tolist()
        return [slice(start, min(start + SHARE, len(self.by_image))) for start in starts]

    def add(self, part: Part) -> None:
        share, by_image, by_caption = part
        self.by_image[share] = by_image
        self.by_caption += by_caption
        self.done[share.start // SHARE] = True

    def check(self, collection: Collection) -> None:
        """Raises CapbenchError where the files are no longer those that were opened."""
        if collection.fingerprint != str(self.collection):
            files = f"{collection.images}, {collection.captions} or {collection.owners}"
            raise CapbenchError(f"{files} has changed while they were ranked; run the same command again")

    def save(self, path: Path) -> None:
        atomic_write(path, partial(np.savez, **vars(self)))


def rank_collection(
    collection: Collection, processes: int = 1, out: Path | None = None, progress: Report | bool | None = None
) -> Ranks:
    """The ranks of a collection both ways, those of `capbench.metrics.retrieval.embedding_ranks`.

    Memory is that of some numbers for each image and caption and of a tile, in each of the processes, which divide
    torch's threads. With `out`, the ranks are written there, and while they are made their state beside it: the same
    call continues what was stopped or killed. `progress` draws a bar (True) or is called with (images done, images).
    Raises CapbenchError as `Collection.check` does, for NaN, an `out` that cannot be written, and a process that died;
    StoppedError after a signal to stop.
    """
    if processes < 1:
        raise CapbenchError(f"{processes} processes rank nothing; give 1 or more")
    if out is not None and out.is_dir():
        raise CapbenchError(f"{out} is a folder; name a file for the ranks")
    opened = collection.fingerprint if all(path.is_file() for path in collection.paths) else ""
    images, captions = collection.check()
    state, path = _State.new(opened, images, captions), None
    if out is not None:
        check_writable(out.parent)
        path = out.with_name(f".{out.name}.part")
        state = _read(path, state)
    with stop_requests() as stopped, reporter(progress, "images ranked") as report:
        saved = time.monotonic()
        for part in _parts(collection, state.todo, processes):
            state.add(part)
            report(min(SHARE * int(state.done.sum()), images), images)
            stop = stopped() and not state.done.all()
            if path is not None and (stop or time.monotonic() - saved > SECONDS):
                state.check(collection)
                state.save(path)
                saved = time.monotonic()
            if stop:
                kept = f"the same command continues after {state.done.sum()} of {len(state.done)} shares"
                raise StoppedError(f"stopped; {kept if path else 'nothing is kept without --out'}")
    state.check(collection)
    if out is not None and path is not None:
        atomic_write(out, partial(np.savez, image_to_caption=state.by_image, caption_to_image=state.by_caption))
        path.unlink(missing_ok=True)
    return Ranks(torch.from_numpy(state.by_image), torch.from_numpy(state.by_caption))


def _read(path: Path, new: _State) -> _State:
    """The state of a call before; `new` where there is none, or one of other files, or a damaged one."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            same = str(file["collection"]) == str(new.collection)
            return _State(**{name: file[name] for name in vars(new)}) if same else new
    except NO_ARRAYS:
        return new


def _parts(collection: Collection, shares: list[slice], processes: int) -> Iterator[Part]:
    """The counts of each share, in the order in which they are made. After a break the shares not begun are left."""
    if processes == 1:
        contest = _contest(collection)
        yield from (_counted(contest, share) for share in shares)
        return
    threads = max(1, torch.get_num_threads() // processes)
    with ProcessPoolExecutor(processes, get_context("spawn"), _open, (collection, threads)) as pool:
        try:
            for made in as_completed([pool.submit(_counted_there, share) for share in shares]):
                yield made.result()
        except BrokenProcessPool as error:
            fault = "a process that ranks has died, perhaps for want of memory"
            raise CapbenchError(f"{fault}; run the same command again with fewer --processes") from error
        finally:
            pool.shutdown(cancel_futures=True)


_collection: list[Collection] = []  # that of a process of the pool
_opened: list[Contest] = []  # its contest, once a share is asked for


def _open(collection: Collection, threads: int) -> None:
    for name in STOP_SIGNALS:  # the parent decides, and waits for the shares under way
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _collection.append(collection)


def _end_with_parent() -> None:
    """A process of a pool would wait for ever for a parent that was killed."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def _counted_there(share: slice) -> Part:
    if not _opened:
        _opened.append(_contest(_collection[0]))  # not when the process starts, where an error has no way to the parent
    return _counted(_opened[0], share)


def _contest(collection: Collection) -> Contest:
    return Contest.of(*collection.mapped(), collection.similarity == "order")


def _counted(contest: Contest, share: slice) -> Part:
    by_image, by_caption = ranks_of(contest.share(share), at_once=SHARE)
    return share, by_image.numpy(), by_caption.numpy()
