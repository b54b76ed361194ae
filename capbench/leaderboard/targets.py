"""What the kernels should reach on a kind of device, and whether the records reach it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from capbench.leaderboard.markdown import DASH, escape
from capbench.timing.records import Comparison, Ratio, TimingEntry, ratio

_SPACE = "\u00a0"
NEAR = 0.95  # a tie is good enough where its interval begins here; nearer to a target, a time needs an interval


@dataclass(frozen=True)
class Target:
    """What our variant should reach with a warm cache on a kind of device.

    Our variant is the one named "ours", else our fastest. Without a baseline, its seconds or peak bytes should be at
    most `threshold`; with one, the baseline's over ours should be at least `threshold`.
    """

    kind: str  # part of the device's name
    operation: str
    size: str  # for the reader
    threshold: float
    numbers: Mapping[str, int] = field(default_factory=dict)  # what the size must have; empty: the worst size counts
    of: Literal["time", "memory"] = "time"
    baseline: str | None = None  # how the name of the baseline starts; "": any, the strongest counts
    note: str = ""  # for the reader

    @property
    def wanted(self) -> str:
        if self.baseline is None:
            words = f"≤ {duration(self.threshold) if self.of == 'time' else memory(self.threshold)}"
        elif self.of == "memory":
            words = f"≥ {self.threshold:g} times less memory than *{escape(self.baseline)}*"
        elif not self.baseline:
            words = f"ratio ≥ {self.threshold:.2g}"
        else:
            words = f"≥ {self.threshold:.2g} times as fast as *{escape(self.baseline)}*"
        return words + (f" ({escape(self.note)})" if self.note else "")


_HARDEST, _SUM = (f"ranking loss, {negatives}, forward and backward" for negatives in ("hardest", "sum"))
_MAXSIM, _BOTH = "maxsim, forward", "maxsim, forward and backward"
_RANKS, _ATTENTION = "ranks both ways", "attention step, forward"
_RECURRENT = ("GRU, forward and backward", "LSTM, forward and backward")
_ENTROPY = "linear and cross entropy, forward and backward"
_SMALL, _LARGE = {"images": 100, "captions": 100}, {"images": 1000, "captions": 5000}
_SMALL_SIZE, _LARGE_SIZE = "100 images x 100 captions", "1,000 images x 5,000 captions"
_5K, _5K_SIZE = {"images": 5000, "captions": 25000}, "5,000 images x 25,000 captions"
_CHAINS = {"chains": 5000, "places": 16, "labels": 20}
_TENSOR = "a tenth of the [image, caption, region, word] tensor"  # of 20 regions and 16 words
_GRADIENTS = 2 * 32768 * 1024 * 2  # bytes of both, in bfloat16
TARGETS = (
    Target("H200", _MAXSIM, _LARGE_SIZE, 5.3e-3, _LARGE),
    Target("H200", _BOTH, _LARGE_SIZE, 17e-3, _LARGE),
    Target("H200", _MAXSIM, _SMALL_SIZE, 25e-6, _SMALL),
    Target("H200", _BOTH, _SMALL_SIZE, 70e-6, _SMALL),
    Target("H200", _HARDEST, "batch 128", 20e-6, {"images": 128}),
    Target("H200", _HARDEST, "batch 32,768", 3.8e-3, {"images": 32768}),
    Target("H200", _SUM, "batch 32,768", 14e-3, {"images": 32768}),
    Target("H200", _RANKS, _5K_SIZE, 1.4e-3, _5K),
    Target("H200", _ATTENTION, "64 images, beam 1", 8e-6, {"images": 64, "beam": 1}),
    Target("H200", _ATTENTION, "256 images, beam 1", 29e-6, {"images": 256, "beam": 1}),
    Target("H200", "chain labels", "5,000 chains x 16 places x 20 labels", 10e-6, _CHAINS),
    Target("H200", "beam search", "64 images, beam 3, 20 steps", 0.8e-3, {"images": 64, "beam": 3, "steps": 20}),
    *(Target("H200", name, "all", 1 / 1.03, baseline="cuDNN", note="within 3 %") for name in _RECURRENT),
    Target("H200", _ENTROPY, "all", 1.0, baseline="torch.compile"),
    Target("H200", _MAXSIM, _LARGE_SIZE, 0.2 * 1000 * 5000 * 20 * 16, _LARGE, "memory", note=_TENSOR),
    Target("H200", _BOTH, _LARGE_SIZE, 0.2 * 1000 * 5000 * 20 * 16, _LARGE, "memory", note=_TENSOR),
    Target("H200", _HARDEST, "batch 32,768", 10e6 + _GRADIENTS, {"images": 32768}, "memory",
           note="10 MB beyond both gradients"),
    Target("CPU", _RANKS, _5K_SIZE, 2.0, _5K),
    Target("CPU", _RANKS, _5K_SIZE, 60.0, _5K, baseline="original: one argsort a query"),
    *(
        Target("CPU", name, "all", 1.0, baseline="")
        for name in (_MAXSIM, _BOTH, _HARDEST, _SUM, _RANKS, _ATTENTION, "chain labels", "beam search", *_RECURRENT,
                     _ENTROPY)
    ),
    Target("CPU", "training step, VSE++", "batch 128", 3.0, {"batch": 128}, baseline="plain PyTorch"),
    Target("CPU", _MAXSIM, "200 images x 1,000 captions", 0.4 * 200 * 1000 * 20 * 16, {"images": 200, "captions": 1000},
           "memory", note=_TENSOR),
    Target("CPU", _HARDEST, "batch 4,096", 4.0, {"images": 4096}, "memory", baseline="dense matrix"),
)  # fmt: skip


Status = Literal["reached", "tie", "undecided", "short"]


@dataclass(frozen=True)
class Verdict:
    """How a target fares. The strings are markdown."""

    status: Status
    size: str  # the worst one, where several count
    measured: str
    ratio: str  # of the strongest baseline's time to ours, at that size
    sizes: str = ""  # "at 1 of 2 sizes", where several count and some are short


@dataclass(frozen=True)
class _Pair:
    """Our variant at one size, and the baseline that the target asks for."""

    comparison: Comparison
    ours: TimingEntry
    baseline: TimingEntry | None

    @property
    def bound(self) -> float:
        return self.comparison.record.bound(self.ours)

    def ratio(self, of: str) -> Ratio:
        assert self.baseline is not None
        if of == "time":
            return ratio(self.baseline, self.ours)
        return Ratio((self.baseline.peak_bytes or 0) / (self.ours.peak_bytes or 1))


def judge(target: Target, compared: Sequence[Comparison]) -> Verdict | None:
    """The verdict from the comparisons of one device; None where none of them is about the target."""
    pairs = [pair for comparison in compared if (pair := _pair(target, comparison)) is not None]
    if not pairs:
        return None
    if target.baseline is not None:
        return _against_baseline(target, pairs)
    values = [pair.ours.median if target.of == "time" else float(pair.ours.peak_bytes or 0) for pair in pairs]
    least = min(values)
    pair = pairs[values.index(least)]
    status: Status = "reached" if least <= target.threshold else "short"
    return _verdict(pair, status, memory(least) if target.of == "memory" else _seconds(pair, status))


def _pair(target: Target, comparison: Comparison) -> _Pair | None:
    """None where a comparison says nothing about the target."""
    if comparison.operation != target.operation or comparison.cold:
        return None
    if any(comparison.numbers.get(name) != number for name, number in target.numbers.items()):
        return None
    whole = [entry for entry in comparison.entries if entry.ours and entry.scale == 1]
    ours = min(whole, key=lambda entry: (entry.variant != "ours", entry.median), default=None)
    baseline = None if target.baseline is None else comparison.baseline(target.baseline)
    if ours is None or (target.baseline is not None and baseline is None):
        return None
    if target.of == "memory" and not all(entry.peak_bytes for entry in (ours, baseline) if entry is not None):
        return None
    return _Pair(comparison, ours, baseline)


def _against_baseline(target: Target, pairs: Sequence[_Pair]) -> Verdict:
    """That of the least ratio among the sizes that are short, else among the undecided, else among all."""
    judged = [(pair, value := pair.ratio(target.of), _status(target, value)) for pair in pairs]
    statuses = [status for _, _, status in judged]
    worst = next((status for status in ("short", "undecided") if status in statuses), None)
    pair, value, status = min((j for j in judged if worst in (None, j[2])), key=lambda j: j[1].value)
    some = f"at {statuses.count('short')} of {len(pairs)} sizes" if status == "short" and len(pairs) > 1 else ""
    several = f" (worst of {len(pairs)})" if len(pairs) > 1 else ""
    if not target.baseline:
        measured = _seconds(pair, status)
    else:
        allowed = pair.baseline.median / pair.bound if pair.baseline and pair.bound else 0.0
        above = target.of == "time" and status == "short" and allowed > value.value
        measured = in_words(value) + (f"; bound {factor(allowed)}" if above else "")
    return _verdict(pair, status, measured, several, some)


def _status(target: Target, value: Ratio) -> Status:
    """A tie is as good as the baseline where its whole interval is near 1. A time near the target needs an interval."""
    if target.of == "time" and value.interval is None and NEAR <= value.value / target.threshold <= 1 / NEAR:
        return "undecided"
    if not (value.tie and target.threshold <= 1):
        return "reached" if value.value >= target.threshold else "short"
    near = value.interval is not None and value.interval[0] >= NEAR
    return "tie" if near or value.value >= target.threshold else "undecided"


def _verdict(pair: _Pair, status: Status, measured: str, several: str = "", some: str = "") -> Verdict:
    strongest = pair.comparison.baseline()
    words = DASH if strongest is None else f"{in_words(ratio(strongest, pair.ours))}, *{escape(strongest.variant)}*"
    return Verdict(status, escape(pair.comparison.size) + several, measured, words, some)


def _seconds(pair: _Pair, status: Status) -> str:
    """Our time, and where it is short the roofline's."""
    shown = status == "short" and 0 < pair.bound < pair.ours.median
    return duration(pair.ours.median) + (f"; bound {duration(pair.bound)}" if shown else "")


def in_words(value: Ratio) -> str:
    """The ratio and its interval: "0.98 (0.95–1.01)"."""
    if value.interval is None:
        return factor(value.value)
    low, high = value.interval
    return f"{factor(value.value)} ({factor(low)}–{factor(high)})"


def factor(value: float) -> str:
    """At least three digits, and at most two decimals.

    >>> factor(0.976), factor(14.68), factor(1234.5)
    ('0.98', '14.7', '1,234')
    """
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Three digits in µs, ms, s or hours.

    >>> duration(0.00573).replace("\u00a0", " ")
    '5.73 ms'
    """
    for unit_seconds, unit in ((1e-6, "µs"), (1e-3, "ms"), (1.0, "s")):
        if seconds / unit_seconds < 999.5:
            return f"{seconds / unit_seconds:.3g}{_SPACE}{unit}"
    return f"{seconds:,.0f}{_SPACE}s" if seconds < 7200 else f"{seconds / 3600:,.1f}{_SPACE}h"


def memory(size: float) -> str:
    """Three digits in MB or GB."""
    return f"{size / 1e6:,.3g}{_SPACE}MB" if size < 0.9995e9 else f"{size / 1e9:,.3g}{_SPACE}GB"
