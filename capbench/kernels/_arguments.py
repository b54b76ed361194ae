"""What the public functions take: tensors or NumPy arrays, checked by kind and shape."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from capbench.base.errors import CapbenchError

Array = Tensor | np.ndarray

_WAITING_IS_AN_ERROR = 2  # torch.cuda.set_sync_debug_mode("error")


def tensors(**arguments: tuple[Array, str]) -> tuple[Tensor, ...]:
    """The arguments as tensors; integers become int64.

    Each argument comes with its kind and axes, such as "float image dim+". An axis has one length in all arguments; an
    axis with a + must not be empty. Floating-point arguments share a device. Raises CapbenchError, which names the
    argument and its shape.

    >>> import numpy as np
    >>> from capbench.kernels._arguments import tensors
    >>> tensors(lengths=(np.array([3, 1], np.int32), "int caption"))
    (tensor([3, 1]),)
    """
    lengths: dict[str, tuple[int, str]] = {}
    device: torch.device | None = None
    result = []
    for name, (value, wanted) in arguments.items():
        kind, axes, filled = _parsed(wanted)
        tensor = value if isinstance(value, Tensor) else _from_numpy(name, value)
        right = tensor.is_floating_point() if kind == "float" else tensor.dtype in _INTEGERS
        if not right or tensor.ndim != len(axes):
            raise CapbenchError(f"{_described(name, tensor)}, not {_KINDS[kind]} [{', '.join(axes)}]")
        for axis, length in zip(axes, tensor.shape, strict=True):
            known, where = lengths.setdefault(axis, (length, name))
            if length != known or (not length and axis in filled):
                why = f"but {where} has {known} for {axis}" if length != known else f"and {axis} must be at least 1"
                raise CapbenchError(f"{_described(name, tensor)}, [{', '.join(axes)}], {why}")
        if kind == "float":
            device = device or tensor.device
            if tensor.device != device:
                raise CapbenchError(f"{_described(name, tensor)} on {tensor.device}, others are on {device}")
        result.append(tensor if kind == "float" else tensor.long())
    return tuple(result)


def embeddings(images: Array, captions: Array, image_of_caption: Array) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings [image, dim] and [caption, dim] without their gradients, and the image of each caption, on one device.

    Raises CapbenchError as `tensors` does.
    """
    images, captions, image_of_caption = tensors(
        images=(images, "float image dim+"), captions=(captions, "float caption dim"),
        image_of_caption=(image_of_caption, "int caption"),
    )  # fmt: skip
    return images.detach(), captions.detach(), image_of_caption.to(images.device)


def check_unit_length(**embeddings: Tensor) -> None:
    """Raises CapbenchError for lengths that are not 1 up to rounding; NaN passes, and is refused among the scores."""
    for name, vectors in embeddings.items():
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        wrong = torch.nonzero((lengths - 1).abs() > max(1e-3, torch.finfo(vectors.dtype).eps)).flatten()
        if len(wrong):
            raise CapbenchError(
                f"the cosine is of vectors of length 1, and row {int(wrong[0])} of {name} has length "
                f'{float(lengths[wrong[0]]):.4g}; normalise them, or ask for similarity "dot"'
            )


def same_dtype(**arguments: Tensor) -> None:
    """Raises CapbenchError unless the arguments have one type."""
    if len({tensor.dtype for tensor in arguments.values()}) > 1:
        each = ", ".join(_described(name, tensor) for name, tensor in arguments.items())
        raise CapbenchError(f"{each}: convert them to one type")


_KINDS = {"float": "floating-point", "int": "integer"}
_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


@cache
def _parsed(wanted: str) -> tuple[str, tuple[str, ...], frozenset[str]]:
    kind, *axes = wanted.split()
    return kind, tuple(a.rstrip("+") for a in axes), frozenset(a[:-1] for a in axes if a.endswith("+"))


def _described(name: str, tensor: Tensor) -> str:
    return f"{name} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _from_numpy(name: str, value: np.ndarray) -> Tensor:
    """A tensor over the array's memory, or over a copy where torch cannot use it (read-only, or with gaps)."""
    try:
        return torch.from_numpy(np.require(value, requirements=["C", "W"]))
    except TypeError as error:
        kind = type(value).__name__
        raise CapbenchError(f"{name} is {kind}, not a tensor or NumPy array of numbers: {error}") from error


def readable(tensor: Tensor) -> bool:
    """Whether the host may read the tensor's values, to check them.

    On a GPU it may not while a graph is captured, nor where waiting is an error (torch.cuda.set_sync_debug_mode).
    """
    return not tensor.is_cuda or not (
        torch.cuda.is_current_stream_capturing() or torch.cuda.get_sync_debug_mode() == _WAITING_IS_AN_ERROR
    )
