"""Arrays and ids from .npy, .npz and .safetensors files. Nothing is unpickled, and sizes are checked before reading."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.base.files import NO_ARRAYS, read_bytes
from capbench.base.npy import load_npy, npy_header
from capbench.data.checked_json import Checked, parse_json
from capbench.scoring.ids import Key

ENDINGS = (".npy", ".npz", ".safetensors")
_PACKED, _DENSE = 2**30, 100  # bytes that any archive may unpack to, and per packed byte where it is more
_KINDS = "fiu"  # of numbers: floating-point and integers


def read_arrays(path: Path, *names: str) -> dict[str, np.ndarray | Tensor]:
    """The arrays of a file that have one of these names; the only one of a .npy file has the first of them.

    Raises CapbenchError for a file that is missing, damaged, of another kind, or pickled.
    """
    if path.suffix not in ENDINGS:
        raise CapbenchError(f"{path} is no array file; give one that ends in {', '.join(ENDINGS)}")
    if not path.is_file():
        raise CapbenchError(f"there is no file {path}")
    try:
        if path.suffix == ".npy":
            if zipfile.is_zipfile(path):
                raise CapbenchError(f"{path} is an archive of arrays; rename it to end in .npz")
            return {names[0]: load_npy(path, mmap_mode="c")}  # torch takes no read-only memory
        if path.suffix == ".npz":
            return _of_archive(path, names)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name in names}  # noqa: SIM118
    except (*NO_ARRAYS, SafetensorError) as error:
        pickled = any(words in str(error) for words in ("Object arrays", "Python objects", "allow_pickle"))
        fault = "it is pickled; save plain numbers with numpy.save" if pickled else f"{error}; save or fetch it again"
        raise CapbenchError(f"cannot read {path}: {fault}") from error


def one_array(path: Path, name: str, *others: str) -> tuple[Tensor, dict[str, np.ndarray | Tensor]]:
    """The array of numbers called `name`, as floats, and what there is of the others.

    Raises CapbenchError as `read_arrays` does, and where there is no such array of numbers.
    """
    arrays = read_arrays(path, name, *others)
    if name not in arrays:
        there = ", ".join(map(repr, _names(path))) or "none"
        raise CapbenchError(f"{path} has no array {name!r}, but {there}; save it under that name")
    return as_floats(arrays.pop(name), str(path)), arrays


def as_floats(array: np.ndarray | Tensor, source: str) -> Tensor:
    """float32 as it is, float64 too; what is shorter becomes float32 and long integers float64, which hold it.

    Raises CapbenchError for what is no matrix of numbers.
    """
    array = _numpy(array)
    if array.ndim != 2 or not array.size:
        raise CapbenchError(f"{source} has shape {list(array.shape)}; give a matrix that is not empty")
    if array.dtype.kind not in _KINDS:
        raise CapbenchError(f"{source} is of type {array.dtype}; give floating-point numbers or integers")
    long = array.dtype.itemsize > (4 if array.dtype.kind == "f" else 2)
    return torch.from_numpy(np.require(array, np.float64 if long else np.float32, ["C", "W"]))


def read_ids(path: Path) -> tuple[Key, ...]:
    """Ids from .npy, from .txt with one a line, or from a .json list; they are numbers or file names.

    Raises CapbenchError for any other file.
    """
    if path.suffix == ".npy":
        return as_ids(read_arrays(path, "ids")["ids"], str(path))
    content = read_bytes(path, path)
    if path.suffix == ".json":
        return tuple(parse_json(b'{"ids": ' + content.removeprefix(b"\xef\xbb\xbf") + b"}", path, _Ids).ids)
    if path.suffix != ".txt":
        raise CapbenchError(f"{path} is no file of ids; give .npy, .txt with one a line, or a .json list")
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise CapbenchError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    if "" in (stripped := [line.strip() for line in lines]):
        raise CapbenchError(f"{path}, line {stripped.index('') + 1}: it is empty; give one id a line")
    return tuple(stripped)


def as_ids(array: np.ndarray | Tensor, source: str) -> tuple[Key, ...]:
    """Raises CapbenchError for what is no list of whole numbers or texts."""
    values = _numpy(array)
    if values.ndim != 1 or values.dtype.kind not in "iuUS":
        wanted = "give one whole number or file name for each row"
        raise CapbenchError(f"{source}: the ids are {values.dtype} {list(values.shape)}; {wanted}")
    texts = np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values
    return tuple(texts.tolist())


def _numpy(array: np.ndarray | Tensor) -> np.ndarray:
    """An array as numpy has it, which lacks the floats of 8 bits and bfloat16."""
    if not isinstance(array, Tensor):
        return array
    return (array.float() if array.is_floating_point() and array.element_size() < 4 else array).numpy()


def _names(path: Path) -> list[str]:
    """The names of all arrays of a .npz or .safetensors file."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as bundle:
            return list(bundle.files)
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _of_archive(path: Path, names: Sequence[str]) -> dict[str, np.ndarray | Tensor]:
    """The arrays of a .npz file, none larger than its archive can honestly hold."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename.removesuffix(".npy") in names:
                with archive.open(member) as file:
                    size = _size(file)
                if size > max(_PACKED, _DENSE * member.compress_size) or size > member.file_size:
                    claim = f"{member.filename} claims {size:,} bytes in {member.compress_size:,}"
                    raise CapbenchError(f"cannot read {path}: {claim}; save it again with numpy.savez")
    with np.load(path, allow_pickle=False) as bundle:
        return {name: bundle[name] for name in bundle.files if name in names}


def _size(file: Any) -> int:
    """The bytes of an array by its header."""
    shape, _, dtype = npy_header(file)
    return math.prod(shape) * dtype.itemsize


class _Ids(Checked):
    ids: list[int | str]
