"""The time and peak memory of an operation, and its share of what the machine can do.

Variants take turns, round by round, so that a slow minute slows all of them. A CUDA device is timed between two events,
a CPU by the clock. Short kernels are replayed in a CUDA graph, so that launches are not timed. Ceilings are measured in
the same run, never taken from a datasheet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from capbench.base.errors import CapbenchError

ROUNDS = 100
FEWEST = 3  # rounds, however slow
SHORT = 50e-6  # seconds below which a kernel is replayed in a CUDA graph
CALLS_IN_A_GRAPH = 20
_CPU_CACHE = 2**27  # bytes, more than a CPU's cache holds
_COPY_BYTES = {"cpu": (2**24, 2**26, 2**28), "cuda": (2**28, 2**30, 2**32)}
_PRODUCTS = {"cpu": (1024, 2048, 3072), "cuda": (4096, 8192, 12288, 16384)}
_TRIES = 5
Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """The measurement of one variant."""

    seconds: tuple[float, ...]  # of one call, one value for each round
    peak_bytes: int  # beyond what was live before the call
    graphed: bool = False  # whether the calls were replayed in a CUDA graph

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
    """The best rates that the machine reached in this run."""

    copy: float  # GB/s, read and written bytes together
    product: dict[str, float]  # TFLOP/s of a square matrix product, by type: "float32", "bfloat16", "float16"


def measure(
    variants: Mapping[str, Call],
    device: torch.device | str,
    rounds: int = ROUNDS,
    cold: bool = False,
    graph: bool | None = None,
    seconds: float = 20.0,
) -> dict[str, Timing]:
    """Warm up, then time each variant once a round; the order rotates by one each round.

    Stops after `rounds` rounds, or after `seconds` once three rounds are done. `cold` empties the cache before each
    call. `graph`: replay in a CUDA graph always (True), never (False), or where a call then takes less than 50 us
    (None). A warm graph holds 20 calls, a cold one 1. A variant that waits for the device is timed without a graph.
    Raises CapbenchError without a variant or a round.

    >>> timings = measure({"list": lambda: [0] * 9, "tuple": lambda: (0,) * 9}, "cpu", rounds=5)
    >>> timings["list"].rounds
    5
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
    seconds_of: dict[str, list[float]] = {name: [] for name in variants}
    order, started = list(variants), time.perf_counter()
    for number in range(rounds):
        if number >= FEWEST and time.perf_counter() - started > seconds:
            break
        for name in order[number % len(order) :] + order[: number % len(order)]:
            if flush is not None:
                flush()
            call, calls = graphs.get(name, (variants[name], 1))
            seconds_of[name].append(_once(call, device, flushed=cold) / calls)
    return {name: Timing(tuple(times), peaks[name], name in graphs) for name, times in seconds_of.items()}


def through(function: Callable[..., object], inputs: Sequence[tuple[object, ...]]) -> Call:
    """A call of `function` on the next of several inputs each time, so that none stays in the cache.

    A warm graph of `measure` captures 20 successive calls: it uses at most 20 inputs, equally often if their number
    divides 20. A cold graph captures one.
    """
    turn = cycle(inputs)
    return lambda: function(*next(turn))


def peak_bytes(call: Call, device: torch.device | str) -> int:
    """The most bytes that tensors held during one call, beyond those held before it.

    CUDA: counted by the caching allocator. CPU: from the profiler's record of torch's allocations, which includes
    compiled code and the backward pass but nothing that numpy allocates.
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
    """Time copies and square products of several large sizes and keep the best rates; takes some seconds.

    float32 products run in full precision (no TF32). Stops at the first size whose product takes over a second.
    """
    device = torch.device(device)
    names = ["float32", "bfloat16", *(["float16"] if device.type == "cuda" else [])]
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        product = {name: _best_product(device, getattr(torch, name)) / 1e12 for name in names}
    finally:
        torch.set_float32_matmul_precision(precision)
    return Ceilings(max(_copied(size, device) for size in _COPY_BYTES[device.type]) / 1e9, product)


def roofline_share(flop: float, bytes: float, seconds: float, ceilings: Ceilings, dtype: str) -> float:
    """The roofline's bound as a share of the time taken; more than 1 means that the data came from a cache.

    `bytes` counts what must be read and written at least once. Williams, Waterman and Patterson, Roofline (CACM 2009).
    Raises CapbenchError for a type without a measured ceiling, or a time that is not positive.
    """
    if seconds <= 0:
        raise CapbenchError(f"a time is more than 0 s, and not {seconds}")
    return roofline_bound(flop, bytes, ceilings, dtype) / seconds


def roofline_bound(flop: float, bytes: float, ceilings: Ceilings, dtype: str) -> float:
    """The fewest seconds that the ceilings allow for this much arithmetic and traffic: the slower of the two.

    Raises CapbenchError for a type without a measured ceiling.

    >>> roofline_bound(flop=2e12, bytes=50e9, ceilings=Ceilings(copy=100.0, product={"float32": 2.0}), dtype="float32")
    1.0
    """
    if flop and dtype not in ceilings.product:
        known = ", ".join(ceilings.product) or "none"
        raise CapbenchError(f"no product was measured in {dtype!r}; there are ceilings for {known}")
    return max(flop / (ceilings.product[dtype] * 1e12) if flop else 0.0, bytes / (ceilings.copy * 1e9))


def _once(call: Call, device: torch.device, flushed: bool = False) -> float:
    """Seconds of one call. A CUDA device is idle first, unless the cache was just flushed: that hides the launch."""
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
    """A call that writes more than the cache holds: twice the L2 of a CUDA device."""
    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else _CPU_CACHE
    buffer = torch.empty(size, dtype=torch.uint8, device=device)
    return lambda: buffer.fill_(1)


def _graphs(
    variants: Mapping[str, Call], device: torch.device, cold: bool, graph: bool | None
) -> dict[str, tuple[Call, int]]:
    """(replay, calls in it) of each variant that is timed as a CUDA graph."""
    if device.type != "cuda" or graph is False:
        return {}
    calls = 1 if cold else CALLS_IN_A_GRAPH
    graphs: dict[str, tuple[Call, int]] = {}
    for name, call in variants.items():
        if graph is None and min(_once(call, device) for _ in range(3)) > CALLS_IN_A_GRAPH * SHORT:
            continue  # too long for the saved launches to bring it below SHORT
        replay = _capture(call, calls, device)
        if replay is not None and (graph or _once(replay, device) / calls < SHORT):
            graphs[name] = replay, calls
    return graphs


def _capture(call: Call, calls: int, device: torch.device) -> Call | None:
    """The replay of `calls` calls; None where a call waits for the device or otherwise fails."""
    mode, stream = torch.cuda.get_sync_debug_mode(), torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        torch.cuda.set_sync_debug_mode("error")  # a wait fails here, not in the middle of a capture
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
    """Bytes read and written a second."""
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device)


def _best_product(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second."""
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
