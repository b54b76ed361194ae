"""Which tensors go to a Triton kernel."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from importlib.util import find_spec

import torch
from torch import Tensor

INSTALLED = find_spec("triton") is not None


def runs_triton(tensor: Tensor) -> bool:
    """Whether a Triton kernel takes this tensor: on a GPU or in Triton's interpreter, in float32 or narrower."""
    return tensor.dtype is not torch.float64 and (interpreted() or (tensor.is_cuda and INSTALLED))


def on_device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """Within it, kernels start on the tensor's GPU: Triton takes the current one, wherever its arguments are."""
    device: AbstractContextManager[None] = torch.cuda.device_of(tensor)
    return device


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter on the CPU: TRITON_INTERPRET=1, set before Triton is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"
