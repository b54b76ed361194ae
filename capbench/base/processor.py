"""What the processor at hand computes with: its instructions, its BLAS, and whether it multiplies in bf16."""

from __future__ import annotations

import re
from typing import Literal

import torch

Operation = Literal["product", "convolution"]


def instruction_set() -> str:
    """The instructions that torch's own kernels use here: AVX512, AVX2, DEFAULT (SSE on x86), SVE256, ...

    ATEN_CPU_CAPABILITY lowers it for a process.
    """
    return torch.backends.cpu.get_cpu_capability()


def blas() -> str:
    """The library that multiplies matrices on a CPU, with its version where torch tells it: "MKL 2024.2"."""
    built = torch.__config__.show()
    if mkl := re.search(r"Math Kernel Library Version ([\d.]+)", built):
        return f"MKL {mkl[1]}"
    named = re.search(r"BLAS_INFO=(\w+)", built)
    return named[1] if named else "unknown"


def computes_bf16(device: torch.device, operation: Operation = "product") -> bool:
    """Whether the device has instructions for bf16 in this operation. False sends the caller to float32.

    Products in bf16 are emulated, and slow, on a CPU without avx512_bf16 or amx_bf16. Convolutions in bf16 are refused
    by oneDNN there unless it has AVX-512 (BW, VL and DQ) or avx_ne_convert; they are asked for by name alone (see
    `Encoder.fold`), so that emulation counts as support. A process that is restricted to lesser instructions, and a
    processor that is not x86, take float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(False)
    if device.type != "cpu" or not instruction_set().startswith("AVX512"):
        return False
    if operation == "convolution":
        supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        return bool(torch.backends.mkldnn.is_available() and supported is not None and supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
