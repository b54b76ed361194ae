"""How long an operation takes, how much memory it needs, and how much of what the machine can do that is.

Rivals are timed in one go, round by round, so that a slow minute of the machine slows them alike. On a CUDA device the
time is that between two events; on a CPU it is the clock's. Short kernels are replayed in a CUDA graph, for else the
launch would be timed. The ceilings are measured on the same machine in the same run, and never taken from a datasheet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from capbench.base.errors import CapbenchError

ROUNDS = 100
FEWEST = 3  # rounds, however long one takes
SHORT = 50e-6  # seconds below which a kernel is replayed in a CUDA graph
CALLS_IN_A_GRAPH = 20
_CPU_CACHE = 2**27  # bytes that no processor's own cache is expected to hold
_COPY_BYTES = {"cpu": (2**24, 2**26, 2**28), "cuda": (2**28, 2**30, 2**32)}
_PRODUCTS = {"cpu": (1024, 2048, 3072), "cuda": (4096, 8192, 12288, 16384)}
_TRIES = 5
Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """`seconds` of one call, one entry a round; `peak_bytes` beyond what was live before the call; whether the calls
    were replayed in a CUDA graph."""

    seconds: tuple[float, ...]
    peak_bytes: int
    graphed: bool = False

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def p10(self) -> float:
        return float(np.quantile(self.seconds, 0.1))

    @property
    def p90(self) -> float:
        return float(np.quantile(self.seconds, 0.9))

    @property
    def rounds(self) -> int:
        return len(self.seconds)


@dataclass(frozen=True)
class Ceilings:
    """What the machine reached in the run: a copy's GB/s, read and write together, and TFLOP/s of a square product by
    type ("float32", "bfloat16", "float16")."""

    copy: float
    product: dict[str, float]


def measure(
    variants: Mapping[str, Call],
    device: torch.device | str,
    rounds: int = ROUNDS,
    cold: bool = False,
    graph: bool | None = None,
    seconds: float = 20.0,
) -> dict[str, Timing]:
    """Time each variant once a round, after a warm-up, until `rounds` rounds are done or, from the third on, `seconds`
    are over. The order turns by one from round to round.

    `cold` writes a buffer larger than the cache before each call. `graph` says whether a CUDA graph is replayed: always
    (True), never, or (None) where a variant then takes less than 50 us. A warm graph holds 20 calls in a row, so a
    variant that goes `through` several inputs does not find them in the cache; a cold one holds one call. A variant
    that waits for the device cannot be captured and is timed as it is; `graphed` tells. Raises CapbenchError without
    a variant or a round.
    """
    device = torch.device(device)
    if not variants or rounds < 1:
        raise CapbenchError(f"{len(variants)} variants and {rounds} rounds: give at least one of each")
    peaks = {}
    for name, call in variants.items():
        call()
        peaks[name] = peak_bytes(call, device)
    graphs = _graphs(variants, device, cold, graph)
    flush = _flush(device) if cold else None
    found: dict[str, list[float]] = {name: [] for name in variants}
    order, started = list(variants), time.perf_counter()
    for number in range(rounds):
        if number >= FEWEST and time.perf_counter() - started > seconds:
            break
        for name in order[number % len(order) :] + order[: number % len(order)]:
            if flush is not None:
                flush()
            call, calls = graphs.get(name, (variants[name], 1))
            found[name].append(_once(call, device, flushed=cold) / calls)
    return {name: Timing(tuple(times), peaks[name], name in graphs) for name, times in found.items()}


def through(function: Callable[..., object], inputs: Sequence[tuple[object, ...]]) -> Call:
    """A call of `function` that takes the next of several inputs each time, so that none of them stays in the cache.

    A warm graph of `measure` holds the 20 inputs that come next, whatever their number: it walks through at most 20,
    and through all equally often where their number divides 20. A cold graph holds one.
    """
    turn = cycle(inputs)
    return lambda: function(*next(turn))


def peak_bytes(call: Call, device: torch.device | str) -> int:
    """The most memory that tensors held during one call, beyond what they held before it.

    On a CUDA device this is the caching allocator's count. On a CPU the allocations and frees of torch's allocator are
    read from the profiler, compiled code and the backward pass included; what numpy allocates is not seen.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        kept = call()  # noqa: F841 (the result counts as long as the trace runs)
    if trace.profiler is None or trace.profiler.kineto_results is None:
        raise CapbenchError("torch was built without its profiler: install a build that has it to count memory")
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(max(0, np.cumsum(sizes).max(initial=0)))


def ceilings(device: torch.device | str) -> Ceilings:
    """The best copy and the best square products of random numbers, over several large sizes; takes some seconds.

    float32 is multiplied as such (no TF32). A size of which one product takes longer than a second is the last.
    """
    device = torch.device(device)
    names = ["float32", "bfloat16", *(["float16"] if device.type == "cuda" else [])]
    with _full_precision():
        product = {name: _best_product(device, getattr(torch, name)) / 1e12 for name in names}
    return Ceilings(copy=max(_copied(size, device) for size in _COPY_BYTES[device.type]) / 1e9, product=product)


def roofline_share(flop: float, bytes: float, seconds: float, ceilings: Ceilings, dtype: str) -> float:
    """The least time that the ceilings allow for this much arithmetic and traffic, as a share of the time taken.

    `bytes` is what must be read and written at least once. More than 1 means that the data came from a cache that is
    faster than the copy. Williams, Waterman and Patterson, Roofline (CACM 2009). Raises CapbenchError for a type whose
    ceiling was not measured, or a time that is not positive.
    """
    if seconds <= 0:
        raise CapbenchError(f"a time is more than 0 s, and not {seconds}")
    return limit(flop, bytes, ceilings, dtype) / seconds


def limit(flop: float, bytes: float, ceilings: Ceilings, dtype: str) -> float:
    """The roofline's seconds for this much arithmetic and traffic. Raises CapbenchError as `roofline_share`."""
    if flop and dtype not in ceilings.product:
        known = ", ".join(ceilings.product) or "none"
        raise CapbenchError(f"no product was measured in {dtype!r}; there are ceilings for {known}")
    return max(flop / (ceilings.product[dtype] * 1e12) if flop else 0.0, bytes / (ceilings.copy * 1e9))


def _once(call: Call, device: torch.device, flushed: bool = False) -> float:
    """Seconds of one call. On a CUDA device it starts when the device is idle, unless the cache was just flushed:
    the flush then hides the launch."""
    if device.type != "cuda":
        start = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - start) / 1e9
    if not flushed:
        torch.cuda.synchronize(device)
    with torch.cuda.device(device):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        last.synchronize()
    return first.elapsed_time(last) / 1e3


def _flush(device: torch.device) -> Call:
    """Writes more than the cache holds: twice the L2 of a CUDA device."""
    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else _CPU_CACHE
    buffer = torch.empty(size, dtype=torch.uint8, device=device)
    return lambda: buffer.fill_(1)


def _graphs(
    variants: Mapping[str, Call], device: torch.device, cold: bool, graph: bool | None
) -> dict[str, tuple[Call, int]]:
    """For each variant that is to be replayed, the replay and how many calls it holds."""
    if device.type != "cuda" or graph is False:
        return {}
    calls = 1 if cold else CALLS_IN_A_GRAPH
    found: dict[str, tuple[Call, int]] = {}
    for name, call in variants.items():
        if graph is None and min(_once(call, device) for _ in range(3)) > CALLS_IN_A_GRAPH * SHORT:
            continue  # a capture saves launches, and never so much
        replay = _capture(call, calls, device)
        if replay is not None and (graph or _once(replay, device) / calls < SHORT):
            found[name] = replay, calls
    return found


def _capture(call: Call, calls: int, device: torch.device) -> Call | None:
    """The replay of `calls` calls; None where a call waits for the device or cannot be captured for another reason."""
    mode, stream = torch.cuda.get_sync_debug_mode(), torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        torch.cuda.set_sync_debug_mode("error")  # found here, not in the middle of a capture
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.set_sync_debug_mode(mode)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(calls):
                call()
        graph.replay()
    except RuntimeError:
        return None
    finally:
        torch.cuda.set_sync_debug_mode(mode)
        torch.cuda.synchronize(device)
    return graph.replay


def _copied(size: int, device: torch.device) -> float:
    """Bytes read and written in a second."""
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device)


def _best_product(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP of a second."""
    best = 0.0
    for size in _PRODUCTS[device.type]:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        c: Tensor = a @ b
        seconds = _best(lambda a=a, b=b, c=c: torch.mm(a, b, out=c), device)  # type: ignore[misc]
        best = max(best, 2 * size**3 / seconds)
        if seconds > 1:
            break
    return best


def _best(call: Call, device: torch.device) -> float:
    times, started = [math.inf], time.perf_counter()
    for number in range(_TRIES):
        if number and time.perf_counter() - started > 2:
            break
        times.append(_once(call, device))
    return min(times)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 in float32 for a while."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
