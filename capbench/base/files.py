"""Files that are either whole or absent, the hashes that name them, and locks between processes."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from capbench.base.errors import CapbenchError


def atomic_write(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Write `path` so that a reader, or a crash at any moment, sees the old file or the new one, never a part.

    `content` is the bytes, or a function that writes them to the open file. The temporary file lies in the same
    folder, is flushed to the disk before the rename, and is removed when anything fails.
    Raises CapbenchError when the folder cannot be written or the disk is full.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
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


def check_writable(folder: Path) -> None:
    """Create `folder` and a file in it, so that a read-only place is found before the work and not after it.

    Raises CapbenchError naming the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CapbenchError(f"cannot write to {folder}: {error.strerror or error}; choose another folder") from error


@contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """A lock between processes, waited for with a limit. The system frees the lock of a process that died."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise CapbenchError(
            f"another process has held {path} for {seconds:g} s; wait for it or end it, and if there is "
            "none, delete the file"
        ) from error
    try:
        yield
    finally:
        lock.release()


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value, the same for the same value wherever it is made."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
