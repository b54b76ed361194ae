"""Arrays in numpy's format, of which nobody knows who wrote them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy

LONGEST = 2**16  # bytes of a header; numpy's own are padded to 64, or a little more


def npy_header(file: IO[bytes] | zipfile.ZipExtFile) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The shape, whether it is stored column by column, and the type of the array that an open file begins with.

    The file is left where the values begin. Raises what numpy raises for another format, and ValueError for a header
    longer than `LONGEST`: numpy would make room for all that it claims.
    """
    version = npy.read_magic(file)
    start = file.tell()
    length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
    if length > LONGEST:
        raise ValueError(f"its header claims {length:,} bytes")
    file.seek(start)
    return (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)


def load_npy(path: Path, mmap_mode: Literal["r", "c"] | None = None) -> np.ndarray:
    """The array of a .npy file, nothing executed. Raises what numpy raises, and as `npy_header` does."""
    with path.open("rb") as file:
        npy_header(file)
    array: np.ndarray = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    return array
