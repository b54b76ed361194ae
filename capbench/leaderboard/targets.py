"""What the kernels should reach on a kind of device, and how far the records are from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from capbench.leaderboard.markdown import escape
from capbench.timing.measure import limit
from capbench.timing.records import Comparison, Ratio, TimingEntry, ratio

_SPACE = "\u00a0"
NEAR = 0.95  # of a rival, where the interval of a tie must begin


@dataclass(frozen=True)
class Target:
    """What our way should reach, warm and whole, on a device whose name holds `kind`.

    Our way is the variant named "ours", and where there is none the fastest that is ours. Without a rival, its seconds
    or peak bytes are to be at most `bound`. With one, the rival's over ours are to be at least `bound`; it is the
    fastest whose name begins with `rival`, and any will do for "". `numbers` are those the size must have; without them
    every size counts, and the worst is told. `size` and `note` are for the reader.
    """

    kind: str
    operation: str
    size: str
    bound: float
    numbers: Mapping[str, int] = field(default_factory=dict)
    of: Literal["time", "memory"] = "time"
    rival: str | None = None
    note: str = ""

    @property
    def wanted(self) -> str:
        if self.rival is None:
            words = f"≤ {duration(self.bound) if self.of == 'time' else memory(self.bound)}"
        else:
            than = f"*{escape(self.rival)}*" if self.rival else "the strongest rival"
            if self.of == "memory":
                words = f"≥ {self.bound:g} times less memory than {than}"
            else:
                words = f"{'at least' if self.bound == 1 else f'≥ {self.bound:.2g} times'} as fast as {than}"
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
    *(Target("H200", name, "all", 1 / 1.03, rival="cuDNN", note="within 3 %") for name in _RECURRENT),
    Target("H200", _ENTROPY, "all", 1.0, rival="torch.compile"),
    Target("H200", _MAXSIM, _LARGE_SIZE, 0.2 * 1000 * 5000 * 20 * 16, _LARGE, "memory", note=_TENSOR),
    Target("H200", _BOTH, _LARGE_SIZE, 0.2 * 1000 * 5000 * 20 * 16, _LARGE, "memory", note=_TENSOR),
    Target("H200", _HARDEST, "batch 32,768", 10e6 + _GRADIENTS, {"images": 32768}, "memory",
           note="10 MB beyond both gradients"),
    Target("CPU", _RANKS, _5K_SIZE, 2.0, _5K),
    Target("CPU", _RANKS, _5K_SIZE, 60.0, _5K, rival="original: one argsort a query"),
    *(
        Target("CPU", name, "all", 1.0, rival="")
        for name in (_MAXSIM, _BOTH, _HARDEST, _SUM, _RANKS, _ATTENTION, "chain labels", "beam search", *_RECURRENT,
                     _ENTROPY)
    ),
    Target("CPU", "training step, VSE++", "batch 128", 3.0, {"batch": 128}, rival="plain PyTorch"),
    Target("CPU", _MAXSIM, "200 images x 1,000 captions", 0.4 * 200 * 1000 * 20 * 16, {"images": 200, "captions": 1000},
           "memory", note=_TENSOR),
    Target("CPU", _HARDEST, "batch 4,096", 4.0, {"images": 4096}, "memory", rival="dense matrix"),
)  # fmt: skip


@dataclass(frozen=True)
class _Row:
    """Our way and its rival, if one is asked for."""

    of: Comparison
    ours: TimingEntry
    rival: TimingEntry | None

    def least(self) -> float:
        """Seconds that the roofline of its run allows; 0 where that is not known."""
        row, ceilings = self.ours, self.of.record.ceilings
        known = not row.flop or row.dtype in ceilings.product
        return limit(row.flop, row.bytes, ceilings, row.dtype) if known else 0.0


def state(target: Target, found: Sequence[Comparison]) -> str:
    """Reached, short by how much, or pending, as markdown; `found` are the rows of one device that count."""
    rows = [row for one in found if (row := _row(target, one)) is not None]
    if not rows:
        return "pending: not timed yet"
    return _against_rival(target, rows) if target.rival is not None else _against_bound(target, rows)


def _row(target: Target, one: Comparison) -> _Row | None:
    """None where a comparison says nothing about the target."""
    if one.operation != target.operation or one.cold:
        return None
    if any(one.numbers.get(name) != number for name, number in target.numbers.items()):
        return None
    whole = [entry for entry in one.entries if entry.ours and entry.scale == 1]
    ours = min(whole, key=lambda entry: (entry.variant != "ours", entry.median), default=None)
    rival = None if target.rival is None else one.rival(target.rival)
    if ours is None or (target.rival is not None and rival is None):
        return None
    if target.of == "memory" and not all(entry.peak_bytes for entry in (ours, rival) if entry is not None):
        return None
    return _Row(one, ours, rival)


def _against_bound(target: Target, rows: Sequence[_Row]) -> str:
    if target.of == "memory":
        value = float(min(row.ours.peak_bytes or 0 for row in rows))
        shown, why = memory(value), ""
    else:
        best = min(rows, key=lambda row: row.ours.median)
        value, least = best.ours.median, best.least()
        shown = duration(value)
        why = f"; the roofline of this run allows {duration(least)}" if 0 < least < value else ""
    if value <= target.bound:
        return f"**reached**: {shown}"
    return f"short: {shown}, {value / target.bound:.3g} times the target{why}"


def _against_rival(target: Target, rows: Sequence[_Row]) -> str:
    """That of the worst size: of those that are short, if any is, the one with the least ratio."""
    judged = [(row, _ratio(target, row)) for row in rows]
    short = [(row, found) for row, found in judged if not (_reaches(target, found) or _unsure(target, found))]
    unsure = [(row, found) for row, found in judged if _unsure(target, found)]
    row, found = min(short or unsure or judged, key=lambda one: one[1].value)
    assert row.rival is not None
    many = len(judged) > 1
    place = f" at {escape(row.of.size)}" if many else ""
    place += f" against *{escape(row.rival.variant)}*" if not target.rival else ""
    if unsure and not short:
        return f"undecided: {in_words(found)}{place}; the rounds differ too much to tell"
    if not short:
        tie = ", a tie" if found.tie and target.bound <= 1 else ""
        return f"**reached**{tie}: {in_words(found)}{place}" + (f", the least of {len(judged)} sizes" if many else "")
    where = f" at {len(short)} of {len(judged)} sizes" if many else ""
    far = "" if target.bound == 1 else f", {found.value / target.bound:.2g} of the target"
    least = row.least() if target.of == "time" else 0.0
    allowed = row.rival.median / least if least else 0.0
    why = f"; the roofline of this run allows {factor(allowed)}" if allowed > found.value else ""
    return f"short{where}: {in_words(found)}{far}{place}{why}"


def _ratio(target: Target, row: _Row) -> Ratio:
    assert row.rival is not None
    if target.of == "time":
        return ratio(row.rival, row.ours)
    return Ratio((row.rival.peak_bytes or 0) / (row.ours.peak_bytes or 1))


def _reaches(target: Target, found: Ratio) -> bool:
    """A tie is as good as the rival where its whole interval is near 1."""
    sure = found.interval is not None and found.interval[0] >= NEAR
    return found.value >= target.bound or (found.tie and sure and target.bound <= 1)


def _unsure(target: Target, found: Ratio) -> bool:
    return found.tie and target.bound <= 1 and not _reaches(target, found)


def in_words(found: Ratio) -> str:
    """The ratio and its interval: "0.98 (0.95–1.01)"."""
    if found.interval is None:
        return factor(found.value)
    low, high = found.interval
    return f"{factor(found.value)} ({factor(low)}–{factor(high)})"


def factor(value: float) -> str:
    """Two decimals, and three digits or more."""
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Three digits in µs, ms, s or hours."""
    for unit_seconds, unit in ((1e-6, "µs"), (1e-3, "ms"), (1.0, "s")):
        if seconds / unit_seconds < 999.5:
            return f"{seconds / unit_seconds:.3g}{_SPACE}{unit}"
    return f"{seconds:,.0f}{_SPACE}s" if seconds < 7200 else f"{seconds / 3600:,.1f}{_SPACE}h"


def memory(size: float) -> str:
    """Three digits in MB or GB."""
    return f"{size / 1e6:,.3g}{_SPACE}MB" if size < 0.9995e9 else f"{size / 1e9:,.3g}{_SPACE}GB"
