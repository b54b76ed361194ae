"""What the pages say in one cell: a number with its interval, a verdict, a setting, a mark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from capbench.evidence.verdicts import Status, Verdict
from capbench.leaderboard.columns import Metric
from capbench.leaderboard.comparison import Runs, marks
from capbench.leaderboard.markdown import DASH, Notes, code, escape
from capbench.metrics.significance import Interval
from capbench.runs.paper import Paper

SIGNS: dict[Status, str] = {"exceeds": "▲", "reproduced": "=", "close": "≈", "short": "▼"}
COMPUTED_WITH = {  # fields of a record on which the last digits of a number hang, in words
    "instruction_set": "instruction set",
    "blas": "BLAS",
    "precision": "precision",
    "threads": "number of threads",
}
_SPACE = "\u00a0"


def ours(runs: Runs, shown: Metric, notes: Notes) -> str:
    """Mean ± half of the 95 % interval; a dash with its reason where no record has the metric."""
    found = runs.estimate(shown.key)
    if found is None:
        return DASH + notes.mark(runs.why_missing(shown.key))
    text = f"{found.mean:.{shown.digits}f}"
    if found.half is not None:
        text += f"{_SPACE}±{_SPACE}{found.half:.{shown.digits}f}"
    if len(found.values) < len(runs.records):
        have = ", ".join(map(str, sorted(found.values)))
        text += notes.mark(f"{shown.head} from seed {have} alone: {runs.why_missing(shown.key)}")
    return text


def setting(runs: Runs) -> str:
    """The encoder, the crop and the number of seeds."""
    record = runs.first
    seeds = f"{len(runs.records)} seed" + ("s" if len(runs.records) != 1 else "")
    return ", ".join([*(escape(word) for word in (record.encoder, record.sees) if word), seeds.replace(" ", _SPACE)])


def preset(runs: Runs, paper: Paper, notes: Notes) -> str:
    """The name of the preset, with a raised letter where something about its records must be known."""
    return f"{code(runs.first.preset)}{warnings(runs, paper, notes)}"


def warnings(runs: Runs, paper: Paper, notes: Notes) -> str:
    seeds_of: dict[str, list[int]] = {}
    for record in runs.records:
        for mark in marks(record, paper):
            seeds_of.setdefault(mark, []).append(record.seed)
    found = [f"{mark} (seed {', '.join(map(str, seeds))})" for mark, seeds in seeds_of.items()]
    for name in ("recipe", "features_fingerprint"):
        if any(getattr(record, name) != getattr(runs.first, name) for record in runs.records):
            found.append(f"the seeds differ in their {name.replace('_', ' ')}")
    found += filter(None, (_differing(runs, name, words) for name, words in COMPUTED_WITH.items()))
    return notes.mark("Caution: " + "; ".join(found)) if found else ""


def _differing(runs: Runs, name: str, words: str) -> str:
    """How the seeds differ in a field: "...: AVX2 (seed 0), AVX512 (seeds 1, 2)".

    A blank field is unknown, and no difference.
    """
    seeds_of: dict[str, list[int]] = {}
    for record in runs.records:
        if value := getattr(record, name):
            seeds_of.setdefault(str(value), []).append(record.seed)
    parts = (f"{value} ({seeds(numbers)})" for value, numbers in seeds_of.items())
    return f"the seeds differ in their {words}: {', '.join(parts)}" if len(seeds_of) > 1 else ""


def seeds(numbers: Sequence[int]) -> str:
    """ "seed 0", "seeds 1, 2"."""
    return f"seed{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def sign(verdict: Verdict, shown: Metric) -> str:
    """The sign of a verdict, and how far ours is behind where it is worse."""
    found = SIGNS.get(verdict.status, "")
    if found and verdict.advantage is not None and verdict.advantage < 0:
        found += f"{_SPACE}({-verdict.advantage:.{shown.digits}f}{_SPACE}behind)"
    return found


def tally(verdicts: Iterable[Verdict], signs: bool = False) -> str:
    """How often each verdict was found: "exceeds 6, close 2", or with signs "▲ 6, ≈ 2"."""
    counts = Counter(found.status for found in verdicts)
    order: Sequence[Status] = (*SIGNS, "pending", "not comparable")
    words = (f"{SIGNS.get(name, name) if signs else name}{_SPACE}{counts[name]}" for name in order if counts[name])
    return ", ".join(words)


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f}{_SPACE}s"
    return f"{seconds / 60:.0f}{_SPACE}min" if seconds < 7200 else f"{seconds / 3600:.1f}{_SPACE}h"


def difference(interval: Interval) -> str:
    """A signed difference with its 95 % interval."""
    values = (interval.mean, interval.low, interval.high)
    digits = 1 if max(map(abs, values)) >= 1 else 3
    mean, low, high = (f"{value:+.{digits}f}" for value in values)
    return f"{mean}{_SPACE}[{low},{_SPACE}{high}]"
