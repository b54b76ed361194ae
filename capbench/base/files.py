"""Atomic writes, hashes, and locks between processes."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import struct
import sys
import tempfile
import time
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from capbench.base.errors import CapbenchError

TEMPORARY = ".tmp"
OTHERS_AT_WORK = 3600.0  # seconds after which no process still writes a temporary file
NO_ARRAYS = (  # all that numpy, zipfile and zlib raise for a file that holds no arrays, or broken ones
    OSError, ValueError, EOFError, KeyError, RuntimeError, SyntaxError, OverflowError, struct.error,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
SILENT = 2.0  # seconds of waiting for a lock that need no word
FOR_ALL = 0o666  # the mode of locks: in a shared folder every user must be able to open them


def atomic_write(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Write `path` so that readers see the old file or the new one but never a part, even after a crash.

    `content` is the bytes or a function that writes them to an open file. The temporary file is in the same folder,
    is flushed to disk before the rename, and is removed if anything fails.
    Raises CapbenchError if the folder cannot be written or the disk is full.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_remains(path.parent, of=path.name)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY, delete=False
        ) as file:
            temporary = Path(file.name)
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise CapbenchError(f"cannot write {path}: {error.strerror or error}; the old file is as it was") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_remains(folder: Path, age: float = OTHERS_AT_WORK, of: str | None = None) -> None:
    """Remove what processes that were killed left of a write: hidden files of at least this age in seconds.

    Those of all files, or `of` the file of one name, which `atomic_write` removes when it writes that file again.
    """
    name = "*" if of is None else glob.escape(of)
    for pattern in (f".{name}.*{TEMPORARY}", f".{name}.claim"):
        for path in folder.glob(pattern):
            with suppress(OSError):  # another process removes it
                if path.stat().st_mtime <= time.time() - age:
                    path.unlink()


def read_bytes(path: Path, what: object) -> bytes:
    """The content of a file. Raises CapbenchError "cannot read <what>: <reason>"."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CapbenchError(f"cannot read {what}: {error.strerror or error}") from error


def check_writable(folder: Path) -> None:
    """Create `folder` and a file in it, so that a read-only folder is refused before the work starts.

    Raises CapbenchError naming the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CapbenchError(f"cannot write to {folder}: {error.strerror or error}; choose another folder") from error


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raises CapbenchError if `folder`, or the next one above that is there, has no room for `needed` bytes."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise CapbenchError(
            f"{what} needs {needed / 1e9:,.2f} GB and {folder} has {free / 1e9:,.2f} GB free: make room, or choose "
            "another folder"
        )


@contextmanager
def locked(path: Path, seconds: float, advice: str = "wait for it or end it") -> Iterator[None]:
    """Hold a lock between processes. The system frees the lock of a process that died. A long wait is said.

    Raises CapbenchError with the advice if another process holds it for longer than `seconds`, and if it cannot be
    opened.
    """
    lock = FileLock(path, mode=FOR_ALL)
    try:
        _acquire(lock, path, seconds)
    except Timeout as error:
        raise CapbenchError(
            f"another process has held {path} for {seconds:g} s; {advice}, and if there is none, delete the file"
        ) from error
    except OSError as error:
        mend = "make it and its folder writable, or choose a folder of your own (CAPBENCH_CACHE is that of features)"
        raise CapbenchError(f"cannot write {path}: {error.strerror or error}; {mend}") from error
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, path: Path, seconds: float) -> None:
    try:
        lock.acquire(timeout=min(SILENT, seconds))
    except Timeout:
        if seconds <= SILENT:
            raise
        print(f"waiting for another process, which holds {printable(path)}", file=sys.stderr, flush=True)
        lock.acquire(timeout=seconds - SILENT)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value, independent of the order of its keys.

    >>> fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def printable(path: Path) -> str:
    """The path as text that UTF-8 can hold: other bytes of a file name are escaped.

    >>> printable(Path(os.fsdecode(b"caf\\xe9.jpg")))
    'caf\\\\xe9.jpg'
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")
