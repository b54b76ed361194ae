"""A place for intermediate results on a CPU that is kept for the next call.

Torch hands memory of some megabytes back to the system, and gets it anew page by page at each call; for a tile that
lives in the cache this can take as long as the arithmetic on it. A GPU has torch's caching allocator.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

MOST_BYTES = 2**25  # that are kept under a name; more is made anew
_kept = threading.local()


def scratch(name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory of this shape, of the device of `like` and its type or `dtype`, with whatever it holds.

    It is the thread's own until it asks for the same name again, so that it must not outlive the operation.
    """
    dtype, count = dtype or like.dtype, math.prod(shape)
    if like.device.type != "cpu" or count * dtype.itemsize > MOST_BYTES:
        return torch.empty(shape, dtype=dtype, device=like.device)
    space: Tensor | None = getattr(_kept, f"{name} {dtype}", None)
    if space is None or space.numel() < count:
        with torch.inference_mode(False):
            space = torch.empty(count, dtype=dtype)
        setattr(_kept, f"{name} {dtype}", space)
    return space[:count].view(shape)
