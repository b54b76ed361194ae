"""The arrays of a record as one compressed .npz file: written without dates, read without trust.

What a file claims is held against limits before it is unpacked: a record may come from anybody.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from capbench.base.errors import CapbenchError
from capbench.base.files import NO_ARRAYS
from capbench.base.npy import npy_header

LARGEST = 1 << 29  # bytes of all arrays of a record; the ranks of five million captions take 40 MB
MOST_DIMENSIONS = 3  # captions are [image, n_best, word]
RANKS = ("image_to_caption", "caption_to_image")
IMAGE_OF_QUERY = "image_of_caption"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A compressed .npz without dates, so that its hash depends on the arrays alone; integers are stored as int32.

    Raises CapbenchError for integers that do not fit, and for arrays of anything but numbers.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name])
            if array.dtype.kind in "iu":
                if array.size and (array.min() < -(2**31) or array.max() >= 2**31):
                    raise CapbenchError(f"array {name!r} holds integers that do not fit in int32")
                array = array.astype(np.int32)
            elif array.dtype.kind not in "fb":
                raise CapbenchError(f"array {name!r} has type {array.dtype}; records hold numbers only")
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            bundle.writestr(entry, member.getvalue(), zipfile.ZIP_DEFLATED, 6)
    return buffer.getvalue()


def unpack(content: bytes) -> dict[str, np.ndarray]:
    """The arrays that `pack` wrote. Nothing is executed, and nothing is unpacked beyond `LARGEST`.

    Raises CapbenchError with the reason for anything else, and for ranks that are none.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            entries = bundle.infolist()
            if (size := sum(entry.file_size for entry in entries)) > LARGEST:
                raise CapbenchError(f"it claims {size:,} bytes of arrays, and {LARGEST:,} is the most")
            arrays = {entry.filename.removesuffix(".npy"): _read(bundle, entry) for entry in entries}
    except NO_ARRAYS as error:
        raise CapbenchError(str(error) or type(error).__name__) from error
    _check(arrays)
    return arrays


def _read(bundle: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    if entry.flag_bits & 1 or entry.compress_type not in _METHODS:
        raise ValueError(f"{entry.filename!r} is encrypted, or compressed by another method than deflate")
    with bundle.open(entry) as member:
        shape, _, dtype = npy_header(member)  # numpy's types ask for more of a file than it uses
        if dtype.kind not in "iufb" or len(shape) > MOST_DIMENSIONS:
            raise ValueError(f"{entry.filename!r} holds {dtype} of {len(shape)} dimensions; records hold numbers")
        if math.prod(shape) * dtype.itemsize + member.tell() != entry.file_size:
            raise ValueError(f"{entry.filename!r} claims the shape {shape} and has {entry.file_size:,} bytes")
    with bundle.open(entry) as member:
        return np.asarray(np.lib.format.read_array(cast(Any, member), allow_pickle=False))


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse what no metric is made of."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CapbenchError(f"{name!r} holds values that are not finite")
        counts = name in (*RANKS, IMAGE_OF_QUERY) or name.endswith("_statistics") or name.startswith("bleu_beam")
        if counts and (array.dtype.kind not in "iu" or array.size == 0 or array.min() < 0):
            raise CapbenchError(f"{name!r} holds other values than whole numbers of 0 and more")
        if counts and array.ndim != (1 if name in (*RANKS, IMAGE_OF_QUERY) else 2):
            raise CapbenchError(f"{name!r} has {array.ndim} dimensions")
    owners, queries = arrays.get(IMAGE_OF_QUERY), arrays.get(RANKS[1])
    if owners is not None and queries is not None and len(owners) != len(queries):
        raise CapbenchError(f"{RANKS[1]!r} has {len(queries):,} queries, and {IMAGE_OF_QUERY!r} {len(owners):,}")
