"""Processes that begin at once: forked from one that has imported what they need and has nothing else of ours.

Such a process may have a small disk, a read-only folder or no network, by the namespaces of Linux.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

NOT_PERMITTED = "this process may not have namespaces of its own"
_NEW_MOUNTS, _NEW_USER, _NEW_NETWORK = 0x20000, 0x10000000, 0x40000000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18


def begin(work: Callable[[Path, Connection], None], folder: Path) -> tuple[BaseProcess, Connection]:
    """A process that does `work`, a function of a module, in `folder`; and what it sends."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["capbench.training.loop", "capbench.vision.features"])
    heard, told = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(folder, told))
    process.start()
    told.close()
    return process, heard


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
