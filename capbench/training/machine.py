"""What training asks of the machine: bf16, the signals to stop, energy and memory."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch

from capbench.base.processor import computes_bf16


def bf16_where_native(device: torch.device, precision: Literal["auto", "full"]) -> AbstractContextManager[Any]:
    """Autocast to bf16 where the device multiplies in it natively and the recipe allows; else full precision."""
    native = precision == "auto" and computes_bf16(device)
    return torch.autocast(device.type, torch.bfloat16) if native else nullcontext()


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within it, SIGTERM, SIGUSR1 and the first SIGINT only set what the function returns; a second SIGINT leaves."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and signal.SIGINT in seen:
            raise KeyboardInterrupt
        seen.append(number)

    signals = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
    before = {number: signal.signal(number, note) for number in signals}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def energy_joules() -> float | None:
    """The processor packages' energy counters, where the system shows them (Linux powercap)."""
    counters = sorted(Path("/sys/class/powercap").glob("intel-rapl:?/energy_uj"))
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
    """The most that was held at once: of a GPU's memory by torch, else by this process (on Linux)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None
