"""Small runs that meet faults, each start in a process of its own, and what must be true of all that they leave.

A run passes moments: each training step, each flush, renaming and removal of a file, each part of a record. At one of
them, or at any time between two, it is killed or signalled, or its disk is full from then on.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest

from capbench.cli import main
from capbench.data.scenes import scenes
from capbench.evidence.records import Result, load_arrays
from capbench.evidence.reliability import Row
from capbench.runs import harness, materials
from capbench.training import checkpoint, loop
from capbench.vision.weights import hash_tensors
from tests.processes import begin

DISK_FULL = "disk full"
SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2")
DONE, REFUSED, STOPPED, KILLED = 0, 2, 75, -signal.SIGKILL
ENDS = {"SIGKILL": {DONE, KILLED}, DISK_FULL: {DONE, REFUSED}} | {name: {DONE, STOPPED} for name in SIGNALS}
OVER = "the end of the process"  # what comes after that meets a run no more
SECONDS = 120.0  # that one start may take

_SMALL = ("embedding_dim=16", "word_dim=8", "training.epochs=3", "training.batch_size=32")
_FEW = {"seed": 5, "train": 60, "val": 15, "test": 20}
_PRELOADED = ("tests.soaking", "capbench.cli.run", "capbench.cli.reporting", "reproductions.vsepp.experiment")
_PLACES = {  # the words for a moment, by the path of its file
    r"checkpoint-": "a checkpoint",
    r"best\.": "the best snapshot",
    r"/features/": "the store of features",
    r"/records/": "the record",
    r"run\.json|vocabulary|session|\.lock": "the end of the run",
    r"leaderboards": "the page",
}
_OF_ONE_RUN = {"started", "wall_seconds", "energy_joules", "energy_of", "peak_memory_bytes", "arrays", "file", "curve"}
_OF_THE_CODE = {"commit", "dirty"}  # which may change in the hour of a soak


@dataclass(frozen=True)
class Fault:
    """What one start of a run meets."""

    kind: str  # a key of ENDS
    moment: int | None = None  # the number of the moment at which it comes
    seconds: float | None = None  # the time after the first moment at which it comes, if at no moment


@dataclass
class Counts:
    """How many faults came, by kind and place."""

    of: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, kind: str, place: str) -> None:
        self.of[kind, place] += 1

    @property
    def total(self) -> int:
        return self.of.total()

    def rows(self) -> list[Row]:
        return [{"fault": kind, "during": place, "times": count} for (kind, place), count in sorted(self.of.items())]


@dataclass(frozen=True)
class Ended:
    """How one start of a run ended."""

    code: int  # the exit status; negative after a signal that it did not hear
    moments: list[str]  # that it passed, in words

    @property
    def place(self) -> str:
        """Where it was last."""
        return self.moments[-1] if self.moments else "the start"


# multiprocessing asks after all children when it starts one: of two threads that ask after one child at once, one reads
# its exit code and the other nothing, which it calls 255.
_STARTING_OR_ENDING = Lock()


def attempt(folder: Path, seed: int = 0, fault: Fault | None = None) -> Ended:
    """Start the small run of a seed in `folder`, or resume it, and let it meet a fault."""
    with _STARTING_OR_ENDING:
        process, heard = begin(partial(_start, seed=seed, fault=fault), folder, preloaded=_PRELOADED)
    moments: list[str] = []
    with suppress(EOFError):
        moments.append(heard.recv())
        if fault is not None and fault.seconds is not None:
            moments += _told_within(heard, fault.seconds)
            with suppress(ProcessLookupError):
                os.kill(process.pid, getattr(signal, fault.kind))  # type: ignore[arg-type] # it has been started
        moments += _told_within(heard, SECONDS)
        process.kill()
        pytest.fail(f"a start goes on after {SECONDS:g} s, in {moments[-1]}")
    with _STARTING_OR_ENDING:  # it is about to end
        process.join()
    heard.close()
    return Ended(DONE if OVER in moments else process.exitcode or 0, moments)


def _told_within(heard: Connection, seconds: float) -> Iterator[str]:
    """What a process tells within some seconds, or until its end, which raises EOFError."""
    end = time.monotonic() + seconds
    while heard.poll(max(0.0, end - time.monotonic())):
        yield heard.recv()


def survive(
    folder: Path,
    faults: Iterator[Fault],
    counts: Counts,
    seed: int = 0,
    after_each: Callable[[Path], object] | None = None,
) -> None:
    """Start a run again and again, each time with another fault, until it ends; each start must end as it may."""
    while True:
        fault = next(faults, None)
        ended = attempt(folder, seed, fault)
        assert ended.code in (ENDS[fault.kind] if fault else {DONE}), f"{fault} ended with {ended}; see {folder}/output"
        if ended.code == DONE:
            return
        assert fault is not None
        counts.add(fault.kind, ended.place)
        if after_each is not None:
            after_each(folder)


def outcome(folder: Path, seed: int = 0) -> dict[str, Any]:
    """All that equal runs share: the one record without times, energy and memory, its arrays, the trained model.

    Raises AssertionError unless there is one record, readable and whole.
    """
    records = folder / "runs" / "records"
    found = [json.loads(path.read_text()) for path in records.glob(f"*-s{seed}-*.json")]
    assert len(found) == 1, f"{len(found)} records of seed {seed}"
    result = Result.model_validate(found[0] | {"file": ""})
    arrays = {name: value.tolist() for name, value in load_arrays(result, records).items()}
    curve = [entry.model_dump(exclude={"seconds"}) for entry in result.curve]
    (description,) = folder.glob(f"runs/vsepp/*-s{seed}-*/run.json")
    tensors, state = checkpoint.load(description.parent / checkpoint.SNAPSHOT)
    vocabulary = hashlib.sha256((description.parent / "vocabulary.json").read_bytes()).hexdigest()
    own = {"arrays": arrays, "curve": curve, "model": hash_tensors(tensors), "state": state, "vocabulary": vocabulary}
    return result.model_dump(exclude=_OF_ONE_RUN | _OF_THE_CODE) | own


def remains(folder: Path) -> list[str]:
    """Files that only a run at work has, or one that has met a fault and was not resumed."""
    patterns = (".*.tmp", ".*.claim", ".*.part", "checkpoint-*", "*.damaged", "scratch", "session.json")
    return sorted(path.name for pattern in patterns for path in folder.rglob(pattern))


def age(folder: Path) -> None:
    """Let a day go by for what killed writers have left beside the files of others."""
    for path in folder.rglob(".*.*"):
        if path.is_file():
            os.utime(path, (0, path.stat().st_mtime - 86_400))


def words(seed: int) -> list[str]:
    """The command of the small run of a seed."""
    by_hand = [word for assignment in _SMALL for word in ("--set", assignment)]
    return ["capbench", "run", "vsepp", "--preset", "vsepp-ours", "--seed", str(seed), *by_hand]


def run_here(folder: Path, seed: int) -> None:
    """The small run in this process, where nothing disturbs it."""
    os.chdir(folder)
    os.environ["CAPBENCH_CACHE"] = str(folder / "cache")
    setattr(materials, "load_dataset", lambda name: scenes(**_FEW))  # noqa: B010 (it is imported there)
    sys.argv = words(seed)
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise


def _start(folder: Path, told: Connection, seed: int, fault: Fault | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ["XDG_CONFIG_HOME"] = str(folder / "configuration")
    _watch(_Moments(told, fault))
    run_here(folder, seed)
    told.send(OVER)


class _Moments:
    """The moments that a process passes; at one of them the fault comes."""

    def __init__(self, told: Connection, fault: Fault | None) -> None:
        self.told, self.fault, self.number, self.full = told, fault, 0, False

    def passed(self, place: str) -> None:
        self.told.send(place)
        self.number += 1
        if self.fault is None or self.number != self.fault.moment:
            return
        if self.fault.kind == DISK_FULL:
            self.full = True
        else:
            os.kill(os.getpid(), getattr(signal, self.fault.kind))

    def flushed(self, file: str) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file)


def _watch(moments: _Moments) -> None:
    """Call `moments.passed` before and after whatever counts."""

    def around(owner: Any, name: str, place: Callable[..., str]) -> None:
        original = getattr(owner, name)

        def watched(*given: Any, **named: Any) -> Any:
            where = place(*given)
            moments.passed(where)
            if name == "fsync":
                moments.flushed(where)
            done = original(*given, **named)
            moments.passed(where)
            return done

        setattr(owner, name, watched)

    around(os, "fsync", lambda number: _place(os.readlink(f"/proc/self/fd/{number}")))
    for name in ("replace", "rename", "unlink"):
        around(os, name, lambda *paths, **_: _place(os.fspath(paths[-1])))
    around(loop._Run, "_step", lambda *_: "a training step")
    around(harness, "save_result", lambda *_: "the record")
    around(harness, "provenance", lambda *_: "the beginning")


def _place(path: str) -> str:
    return next((place for pattern, place in _PLACES.items() if re.search(pattern, path)), "another file")


def random_faults(seed: int, kinds: tuple[str, ...], moments: int, seconds: float) -> Iterator[Fault]:
    """Faults without end: of random kinds, half of them at one of so many moments, half within so many seconds."""
    random = np.random.default_rng(seed)
    while True:
        kind = kinds[random.integers(len(kinds))]
        if kind == DISK_FULL or random.random() < 0.5:
            yield Fault(kind, moment=int(random.integers(1, moments + 1)))
        else:
            yield Fault(kind, seconds=float(random.uniform(0.0, seconds)))
