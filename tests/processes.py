"""Processes that begin at once: forked from one that has imported what they need and has nothing else of ours.

Such a process may have a small disk, a read-only folder or no network, by the namespaces of Linux.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

LIMIT = 240.0  # seconds that a test of several processes may take on a busy machine
NOT_PERMITTED = "this process may not have namespaces of its own"
_NEW_MOUNTS, _NEW_USER, _NEW_NETWORK = 0x20000, 0x10000000, 0x40000000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18


class Ended(NamedTuple):
    """How a process ended."""

    code: int | None  # its exit code, minus the signal that killed it
    returned: Any  # None where it raised or was killed
    raised: str  # the exception's name and text; empty without one


def begin(work: Callable[..., None], *arguments: Any, preloaded: Sequence[str] = ()) -> tuple[BaseProcess, Connection]:
    """A process that does `work`, a function of a module, with these arguments; and what it sends.

    The first process of all decides which modules are imported beforehand.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["capbench.runs.harness", "capbench.captioners.experiment", *preloaded])
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


def result_of(work: Callable[[Path, Connection], None], folder: Path) -> Any:
    """What a process sends once it has done `work`; the test is skipped where it may not have its namespaces."""
    process, heard = begin(work, folder)
    try:
        sent = heard.recv()
    finally:
        process.join()
        heard.close()
    if sent == NOT_PERMITTED:
        pytest.skip(NOT_PERMITTED)
    return sent


def namespaces(told: Connection, network: bool = False) -> None:
    """Give this process mounts of its own, and no network. Where it may not, it says so and ends."""
    wanted = _NEW_MOUNTS | (_NEW_NETWORK if network else 0)
    users, groups = os.getuid(), os.getgid()
    try:
        if _libc().unshare(wanted) and _libc().unshare(wanted | _NEW_USER):
            raise OSError
        with suppress(OSError):  # where it is a user of a namespace of its own
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {users} 1")
            Path("/proc/self/gid_map").write_text(f"0 {groups} 1")
        _mount("none", "/", "", _RECURSIVE | _PRIVATE)
    except (OSError, AttributeError):
        told.send(NOT_PERMITTED)
        raise SystemExit from None


def small_disk(folder: Path, size: int) -> None:
    """Mount a disk of some bytes."""
    folder.mkdir(exist_ok=True)
    _mount("tmpfs", str(folder), "tmpfs", 0, f"size={size}")


def read_only(folder: Path) -> None:
    _mount(str(folder), str(folder), "", _BIND)
    _mount("none", str(folder), "", _BIND | _REMOUNT | _READ_ONLY)


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    if _libc().mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
