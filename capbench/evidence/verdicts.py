"""What a paper reported, whether our seeds agree with it, and its claims made executable."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from capbench.base.errors import CapbenchError
from capbench.evidence import resampling
from capbench.evidence.results import Results
from capbench.metrics import registry
from capbench.metrics.significance import Interval, seed_interval

Status = Literal["exceeds", "reproduced", "close", "short", "pending", "not comparable"]
ClaimStatus = Literal["holds", "fails", "undecided", "pending"]
Role = Literal["target", "baseline", "context"]


@dataclass(frozen=True)
class Reported:
    """One number of a paper, and where it stands."""

    table: str
    dataset: str
    protocol: str
    split: str
    system: str
    preset: str  # ours that reproduces it; every target has one
    encoder: str
    crop: str
    train_split: str
    setting: str
    metric: str
    value: str  # in the paper's own digits
    unit: str
    source: str
    confidence: str  # "two-sources", "one-source", or "memory": known by heart alone, marked until confirmed
    role: Role  # "target": the paper's own result; "baseline": another system's; "context": only recorded
    compare_with: tuple[str, ...]  # further presets of ours that are compared with it

    @property
    def presets(self) -> tuple[str, ...]:
        """The presets of ours that this number is compared with."""
        return (self.preset, *self.compare_with) if self.role == "target" else self.compare_with

    @property
    def number(self) -> float:
        """The value on our scale, where BLEU and its like go to 100."""
        return float(self.value) * (100.0 if self.unit == "fraction" else 1.0)


@dataclass(frozen=True)
class Measured:
    """Our mean against a reported number, counted so that more is better."""

    advantage: float  # how much better our mean is
    low: float  # the worse end of our interval's advantage; NaN, which no comparison holds for, without an interval
    high: float  # the better end, likewise
    tolerance: float


@dataclass(frozen=True)
class Rule:
    """One verdict, its sign on the pages, and when it applies, in words and as code."""

    status: Status
    sign: str
    words: str
    applies: Callable[[Measured], bool]


# The first rule that applies decides. leaderboards/README.md shows these words.
RULES = (
    Rule("exceeds", "▲", "the whole 95 % interval is better than the reported number", lambda ours: ours.low > 0),
    Rule("short", "▼", "our mean is worse by more than the tolerance, whether or not the interval holds the reported "
         "number", lambda ours: ours.advantage < -ours.tolerance - 1e-9),
    Rule("reproduced", "=", "our mean is as good or better, or the interval holds the reported number",
         lambda ours: ours.advantage >= 0 or ours.low <= 0 <= ours.high),
    Rule("close", "≈", "our mean is worse, by the tolerance at most, and the interval is worse too", lambda ours: True),
)  # fmt: skip
BEST_TO_WORST: tuple[Status, ...] = ("exceeds", "reproduced", "close", "short")
TOLERANCES = (
    f"{registry.RECALL_TOLERANCE:g} points of a recall, BLEU or the like (as far as the VSE++ author's re-run lies), "
    f"{2 * registry.RECALL_TOLERANCE:g} of rsum, {registry.RANK_TOLERANCE:g} rank, and "
    f"{100 * registry.RELATIVE_TOLERANCE:g} % of a perplexity (our choice: no re-run of one is known)"
)


@dataclass(frozen=True)
class Verdict:
    """Ours against one reported number."""

    status: Status
    mean: float | None = None
    interval: Interval | None = None  # of our mean
    advantage: float | None = None  # how much better ours is, whichever way better lies
    test: str = ""  # how the interval was computed
    reason: str = ""  # why there is no judgement


@dataclass(frozen=True)
class Outcome:
    """What a claim's test gave."""

    status: ClaimStatus
    statement: str  # on which data, and the numbers
    interval: Interval | None = None  # of the difference that the claim says is above 0
    detail: str = ""  # the metric and the test
    qualifier: str = ""  # what limits the status: "at its ends, not monotone"


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper with the test that decides it on our records."""

    name: str
    sentence: str
    source: str  # the section, table or figure
    test: Callable[[Results], Outcome]


def read_reported(path: Path) -> list[Reported]:
    """The rows of a paper's reported.csv. Raises CapbenchError naming the row and the field that is wrong."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CapbenchError(f"cannot read {path}: {error}") from error
    names = [field.name for field in fields(Reported)]
    rows = []
    for line, cells in enumerate(lines, start=2):
        if list(cells) != names or None in cells.values():
            raise CapbenchError(f"{path}, row {line}: the columns must be {', '.join(names)}")
        try:
            float(cells["value"])
        except ValueError as error:
            raise CapbenchError(f"{path}, row {line}: value {cells['value']!r} is not a number") from error
        if cells["role"] not in get_args(Role):
            known = ", ".join(get_args(Role))
            raise CapbenchError(f"{path}, row {line}: role {cells['role']!r} is none of {known}")
        if cells["role"] == "target" and not cells["preset"]:
            raise CapbenchError(f"{path}, row {line}: a target needs a preset")
        row: dict[str, Any] = {**cells, "compare_with": tuple(cells["compare_with"].split())}
        rows.append(Reported(**row))
    return rows


def verdict(reported: Reported, values: Mapping[int, float], one_seed: Interval | None = None) -> Verdict:
    """Our values by seed, of the same data set and protocol, against a reported number, by `RULES`.

    Two seeds or more have the t interval over seeds; one seed has `one_seed`, and without it nothing exceeds.
    """
    if not values:
        return Verdict("pending", reason="no run of ours")
    metric = registry.metric(reported.metric)
    sign = -1.0 if metric.lower_is_better else 1.0
    interval = seed_interval(list(values.values())) if len(values) > 1 else one_seed
    mean = sum(values.values()) / len(values)
    advantage = sign * (mean - reported.number)
    ends = (interval.low, interval.high) if interval else (math.nan, math.nan)
    low, high = sorted(sign * (end - reported.number) for end in ends)
    ours = Measured(advantage, low, high, metric.allowed(reported.number))
    status = next(rule.status for rule in RULES if rule.applies(ours))
    return Verdict(status, mean, interval, advantage, interval.test if interval else "1 seed, no interval")


def difference(results: Results, better: str, worse: str, metric: str) -> Outcome:
    """The claim that one preset beats another in a metric, on records of one data set, protocol and encoder.

    Pending where a side has no run. Raises CapbenchError where the two sides are of different data or encoders.
    """
    sides = [results.select(preset=name) for name in (better, worse)]
    if missing := [name for name, side in zip((better, worse), sides, strict=True) if not side.records]:
        return Outcome("pending", f"no run of {' and '.join(missing)}")
    both = Results(results.folder, sides[0].latest.records + sides[1].latest.records)
    settings = both.settings("dataset", "split", "protocol", "encoder", "dataset_fingerprint")
    if len(settings) > 1:
        raise CapbenchError(f"{better} and {worse} are not of the same data and encoder: {settings[:3]}")
    statement = ", ".join(
        f"{name} {_mean(side, metric):.1f}" for name, side in zip((better, worse), sides, strict=True)
    )
    return decided(advantage(sides[0], sides[1], metric), statement, metric)


def on_most_telling(better: str, worse: str, test: Callable[[Results], Outcome]) -> Callable[[Results], Outcome]:
    """A test on the records that `Results.first_with` finds of both presets; its statement names the data set."""

    def on_first(results: Results) -> Outcome:
        candidates = results.first_with(better, worse)
        if candidates is None:
            return Outcome("pending", f"needs {better} and {worse} on one data set")
        outcome = test(candidates)
        return replace(outcome, statement=f"on {where(candidates)}: {outcome.statement}")

    return on_first


def where(results: Results) -> str:
    """The data set of records, and their encoder unless it has the same name."""
    record = results.records[0]
    return record.dataset + (f" with {record.encoder}" if record.encoder != record.dataset else "")


def beats(better: str, worse: str, metric: str) -> Callable[[Results], Outcome]:
    """The test that one preset beats another in a metric, on the most telling data set that has both scored in it."""
    test = on_most_telling(better, worse, lambda candidates: difference(candidates, better, worse, metric))
    return lambda results: test(replace(results, records=tuple(r for r in results.records if metric in r.metrics)))


def points_at_what_is_named(preset: str) -> Callable[[Results], Outcome]:
    """The test that, on scenes, a preset points at what a phrase names more often than chance."""

    def test(results: Results) -> Outcome:
        found = results.select(dataset="scenes", preset=preset).first_with(preset)
        scenes = None if found is None else found.latest
        if scenes is None or not scenes.values("pointing"):
            return Outcome("pending", f"needs {preset} on scenes")
        hits, chance = (float(np.mean(list(scenes.values(name).values()))) for name in ("pointing", "pointing_chance"))
        interval = advantage(scenes, scenes, "pointing", "pointing_chance")
        return decided(interval, f"on scenes: {hits:.1f} % point at what is named, chance {chance:.1f} %", "pointing")

    return test


def advantage(ours: Results, theirs: Results, metric: str, their_metric: str | None = None) -> Interval:
    """How much better ours are in a metric, by paired bootstrap; theirs may be scored in another metric.

    Where both sides are the same runs, the seeds are drawn together; see `resampling.advantage`.
    """
    same = ours.records == theirs.records
    return resampling.advantage(ours.arrays(), theirs.arrays(), metric, their_metric, same)


def decided(interval: Interval, statement: str, metric: str) -> Outcome:
    """holds where the whole interval is above 0, fails where it is below, else undecided."""
    status: ClaimStatus = "holds" if interval.low > 0 else "fails" if interval.high < 0 else "undecided"
    return Outcome(status, statement, interval, f"{metric}, {interval.test}")


def outcome(claim: Claim, results: Results) -> Outcome:
    """A claim's outcome on canonical data and the presets' own recipes.

    Pending, with the error, where its test cannot use the records.
    """
    try:
        return claim.test(results.canonical.plain)
    except (CapbenchError, LookupError, ValueError, ArithmeticError) as error:
        return Outcome("pending", f"the test cannot use the records ({type(error).__name__}): {error}")


def _mean(results: Results, metric: str) -> float:
    """The metric from the arrays of the records, over seeds."""
    entry = registry.metric(metric)
    if entry.resampled in ("corpus", "jointly"):
        return float(entry.compute(results.counts(metric).sum(1)).mean())
    return float(results.queries(metric)[0].mean())
