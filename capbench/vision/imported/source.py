"""What a file of features says of itself before it is read, and its rows."""

from __future__ import annotations

import math
import tokenize
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Float32, Int64
from numpy.typing import NDArray

from capbench.base.errors import CapbenchError
from capbench.base.npy import npy_header

File = IO[bytes] | zipfile.ZipExtFile
_NO_HEADER = (ValueError, EOFError, SyntaxError, tokenize.TokenError)  # what numpy raises; not of a damaged archive
MOST_BYTES = 2**26  # of one image: 64 MiB are 100 boxes of 160,000 numbers
FLOATS = {"f2", "f4", "f8"}


@dataclass(frozen=True)
class Row:
    """The features of one row of a file."""

    place: str  # file and line, row or key, for messages
    features: Float32[np.ndarray, "... dim"]  # [dim] or [region, dim]
    boxes: Float32[np.ndarray, "region 4"] | None = None  # x0, y0, x1, y1 as fractions of the image


@dataclass(frozen=True)
class Source:
    """Features in files, checked against a data set but not read yet."""

    image_of_row: Int64[np.ndarray, " row"]  # index into the data set; several rows of an image must be equal
    regions: tuple[int, int] | None  # the fewest and the most of an image; None where a row is one vector
    dim: int
    boxed: bool  # whether each row has boxes
    rows: Callable[[], Iterator[Row]]  # in the order of `image_of_row`
    said: tuple[str, ...]  # what was found, a line each


@dataclass(frozen=True)
class Array:
    """The header of an array in numpy's format."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    start: int  # where its values begin, in bytes

    @property
    def size(self) -> int:
        """The bytes of the header and the values."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize


def array_header(file: File, place: str, size: int) -> Array:
    """The header of an array of floats in an open file of `size` bytes.

    Raises CapbenchError naming `place` for another format or type, and for a size that the header does not announce.
    """
    try:
        shape, fortran, dtype = npy_header(file)
    except _NO_HEADER as error:
        raise CapbenchError(f"{place} is no array in numpy's format ({error}); fetch it again") from error
    if dtype.str[1:] not in FLOATS:
        raise CapbenchError(f"{place} holds {dtype}; features are floats of 16, 32 or 64 bits")
    if fortran and len(shape) > 1:
        raise CapbenchError(f"{place} is stored column by column; save np.ascontiguousarray of it")
    array = Array(shape, dtype, file.tell())
    if size != array.size:
        raise CapbenchError(
            f"{place} has {size:,} bytes, and its header {list(shape)} of {dtype} announces {array.size:,}; "
            "fetch it again"
        )
    return array


def regions_of(shape: Sequence[int], place: str) -> int | None:
    """How many vectors an image's array has; None for a single one [dim]. A grid [height, width, dim] counts its cells.

    Raises CapbenchError for an empty array, and for one of more than `MOST_BYTES`.
    """
    if not shape or 0 in shape:
        raise CapbenchError(f"{place} has the shape {list(shape)}, no vector; leave it out or make it again")
    if 4 * math.prod(shape) > MOST_BYTES:
        raise CapbenchError(f"{place} has the shape {list(shape)}, more than {MOST_BYTES:,} bytes for one image")
    return math.prod(shape[:-1]) if len(shape) > 1 else None


def span(counts: Sequence[int | None], source: Path) -> tuple[int, int] | None:
    """The fewest and most regions of an image; None for single vectors. Raises CapbenchError for a mixture."""
    known = [count for count in counts if count is not None]
    if not known:
        return None
    if len(known) < len(counts):
        raise CapbenchError(f"{source} mixes single vectors and sets of regions; import them apart")
    return min(known), max(known)


def same_dim(dims: set[int], source: Path) -> int:
    """The one length of all vectors. Raises CapbenchError for several."""
    if len(dims) != 1:
        raise CapbenchError(f"{source} has vectors of {', '.join(map(str, sorted(dims)))} numbers; they must agree")
    return next(iter(dims))


def checked(values: NDArray[np.generic], place: str) -> NDArray[np.float32]:
    """`values` as float32, a grid [height, width, dim] as its cells [cell, dim].

    Raises CapbenchError where one is NaN or infinite.
    """
    with np.errstate(over="ignore"):
        features = values.astype(np.float32)
    if features.ndim > 2:
        features = features.reshape(-1, features.shape[-1])
    if not np.isfinite(features).all():
        raise CapbenchError(f"{place} holds NaN or infinite numbers; make its features again")
    return features


def fractions(boxes: NDArray[np.generic], width: float, height: float, place: str) -> NDArray[np.float32]:
    """Boxes in pixels as fractions of the image.

    Raises CapbenchError for an image without a size, a reversed box, and one outside.
    """
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise CapbenchError(f"{place}: the image has {width:g} x {height:g} pixels; correct its size")
    scaled = checked(boxes, f"{place}: the array of boxes") / np.array([width, height, width, height], np.float32)
    outside = (scaled < -0.02).any() or (scaled > 1.02).any()
    if outside or (scaled[:, :2] > scaled[:, 2:]).any():
        raise CapbenchError(f"{place}: a box is reversed, or outside the image of {width:g} x {height:g} pixels")
    return scaled.clip(0, 1)
