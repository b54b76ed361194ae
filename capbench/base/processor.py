"""What this processor computes with: its instruction set, its BLAS, and whether it multiplies in bf16."""

from __future__ import annotations

import re
from typing import Literal

import torch

Operation = Literal["product", "convolution"]


def instruction_set() -> str:
    """The instruction set of torch's own kernels: AVX512, AVX2, DEFAULT (SSE on x86), SVE256, ...

    ATEN_CPU_CAPABILITY limits it for a process.
    """
    return torch.backends.cpu.get_cpu_capability()


def blas() -> str:
    """The library that multiplies matrices on a CPU, with its version if torch knows it: "MKL 2024.2"."""
    build = torch.__config__.show()
    if mkl := re.search(r"Math Kernel Library Version ([\d.]+)", build):
        return f"MKL {mkl[1]}"
    library = re.search(r"BLAS_INFO=(\w+)", build)
    return library[1] if library else "unknown"


def computes_bf16(device: torch.device, operation: Operation = "product") -> bool:
    """Whether the device has bf16 instructions for this operation; if not, the caller computes in float32.

    A CPU without avx512_bf16 or amx_bf16 emulates products in bf16, slowly. oneDNN refuses convolutions in bf16 without
    AVX-512 (BW, VL and DQ) or avx_ne_convert. Emulated convolutions count as supported, because `Encoder.fold` uses
    them only on request. A process limited to a smaller instruction set, and a processor other than x86, use float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(False)
    if device.type != "cpu" or not instruction_set().startswith("AVX512"):
        return False
    if operation == "convolution":
        supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        return bool(torch.backends.mkldnn.is_available() and supported is not None and supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
