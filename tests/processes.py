"""Processes that begin at once: forked from one that has imported what they need and has nothing else of ours."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

LIMIT = 240.0  # seconds that a test of several processes may take on a busy machine


class Ended(NamedTuple):
    """How a process ended."""

    code: int | None  # its exit code, minus the signal that killed it
    returned: Any  # None where it raised or was killed
    raised: str  # the exception's name and text; empty without one


def begin(work: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """A process that does `work`, a function of a module, with these arguments; and what it sends."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["capbench.runs.harness", "capbench.captioners.experiment"])
    heard, told = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(*arguments, told))
    process.start()
    told.close()
    return process, heard


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def together(count: int, work: Callable[[Path], Any], folder: Path, seconds: float = LIMIT) -> list[Ended]:
    """Do `work(folder)` in several processes that know each other; none is left after `seconds`."""
    deadline = time.monotonic() + seconds
    port = free_port()
    members = [begin(_member, work, folder, rank, count, port) for rank in range(count)]
    ended = []
    try:
        for process, heard in members:
            answer: tuple[Any, str] = (None, "")
            if heard.poll(max(0.0, deadline - time.monotonic())):
                with suppress(EOFError):  # of a process that was killed
                    answer = heard.recv()
            process.join(max(0.0, deadline - time.monotonic()))
            ended.append(Ended(process.exitcode, *answer))
    finally:
        for process, _ in members:
            process.kill()
            process.join()
    return ended


def _member(work: Callable[[Path], Any], folder: Path, rank: int, count: int, port: int, told: Connection) -> None:
    from capbench.training.processes import joined

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with joined():
            told.send((work(folder), ""))
    except Exception as error:
        traceback.print_exc()
        told.send((None, f"{type(error).__name__}: {error}"))
        raise SystemExit(1) from error
