"""What training asks of the machine: bf16, energy and memory."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import torch

from capbench.base.processor import computes_bf16

ENERGY_OF = "CPU package"  # what `energy_joules` counts


def bf16_where_native(device: torch.device, precision: Literal["auto", "full"]) -> AbstractContextManager[Any]:
    """Autocast to bf16 where the device multiplies in it natively and the recipe allows it; else full precision."""
    native = precision == "auto" and computes_bf16(device)
    return torch.autocast(device.type, torch.bfloat16) if native else nullcontext()


def energy_joules(device: torch.device) -> float | None:
    """The energy counters of the processor packages (Linux powercap), for work on a CPU; None where there are none."""
    counters = sorted(Path("/sys/class/powercap").glob("intel-rapl:?/energy_uj")) if device.type == "cpu" else []
    try:
        return sum(int(counter.read_text()) for counter in counters) / 1e6 if counters else None
    except OSError:
        return None


def restart_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_bytes` count from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most memory held at once: by torch on a GPU, else by this process (Linux only)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return 1024 * int(peak[1]) if peak else None
