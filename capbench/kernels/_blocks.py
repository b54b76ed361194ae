"""Work in blocks: slices of an axis, and CPU memory for a block's results, kept between calls.

The allocator returns blocks of megabytes to the system and gets them back page by page, which can take as long as the
arithmetic on a tile that fits the cache. On a GPU torch caches memory itself.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

MOST_BYTES = 2**25  # kept under one name; larger memory is allocated anew
_kept = threading.local()


def slices(start: int, stop: int, step: int) -> Iterator[slice]:
    """Consecutive slices of `step`; the last one may be shorter."""
    yield from (slice(at, min(at + step, stop)) for at in range(start, stop, step))


def scratch(name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised memory on the device of `like`, of its type or `dtype`.

    The next request of the same thread for the same name reuses it: it must not outlive the operation.
    """
    dtype, count = dtype or like.dtype, math.prod(shape)
    if like.device.type != "cpu" or count * dtype.itemsize > MOST_BYTES:
        return torch.empty(shape, dtype=dtype, device=like.device)
    memory: Tensor | None = getattr(_kept, f"{name} {dtype}", None)
    if memory is None or memory.numel() < count:
        with torch.inference_mode(False):
            memory = torch.empty(count, dtype=dtype)
        setattr(_kept, f"{name} {dtype}", memory)
    return memory[:count].view(shape)
