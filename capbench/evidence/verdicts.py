"""What a paper reported, whether our seeds agree with it, and its claims made executable."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from capbench.base.errors import CapbenchError
from capbench.evidence.results import Results, is_of_corpus
from capbench.metrics.captioning import paired_bootstrap_corpus
from capbench.metrics.significance import Interval, paired_bootstrap, seed_interval

Status = Literal["exceeds", "reproduced", "close", "short", "pending", "not comparable"]
Role = Literal["target", "baseline", "context"]

# The first author's own re-run of VSE++ (Table 3, row 3.15) differs from the paper by up to 2.4 points.
RECALL_TOLERANCE = 2.4
RANK_TOLERANCE = 1.0


@dataclass(frozen=True)
class Reported:
    """One number of a paper, in the paper's own digits (`value`), and where it stands.

    `role` says what it is for: "target", the reported number of our `preset`; "baseline", another system's
    number that the presets in `compare_with` are set against; "context", shown and never judged. `confidence`
    is "two-sources", "one-source" or "memory" (known by heart alone, marked until confirmed).
    """

    table: str
    dataset: str
    protocol: str
    split: str
    system: str
    preset: str
    encoder: str
    crop: str
    train_split: str
    setting: str
    metric: str
    value: str
    unit: str
    source: str
    confidence: str
    role: Role
    compare_with: tuple[str, ...]

    @property
    def presets(self) -> tuple[str, ...]:
        """The presets of ours that this number is compared with."""
        return (self.preset,) if self.role == "target" else self.compare_with

    @property
    def number(self) -> float:
        """The value on our scale, where BLEU and the like go to 100; `value` keeps the paper's digits."""
        return float(self.value) * (100.0 if self.unit == "fraction" else 1.0)

    @property
    def lower_is_better(self) -> bool:
        return lower_is_better(self.metric)


@dataclass(frozen=True)
class Verdict:
    """Ours against a reported number. `advantage` is how much better ours is, whichever way better lies.

    `interval` is of our mean; `test` says how it was found; `reason` says why there is no judgement.
    """

    status: Status
    mean: float | None = None
    interval: Interval | None = None
    advantage: float | None = None
    test: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a claim's test found: its interval is of the difference that the claim says is above 0."""

    status: Literal["holds", "fails", "undecided", "pending"]
    statement: str
    interval: Interval | None = None
    detail: str = ""


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, where it stands, and the test that decides it on our records."""

    name: str
    sentence: str
    source: str
    test: Callable[[Results], Outcome]


def lower_is_better(metric: str) -> bool:
    return metric.endswith(("_rank", "perplexity", "cross_entropy"))


def tolerance(metric: str) -> float:
    """How much worse a number may be and still be close.

    That of rsum is twice that of one recall: six times would take its six recalls to err together, all the same way.
    """
    if lower_is_better(metric):
        return RANK_TOLERANCE
    return 2 * RECALL_TOLERANCE if metric == "rsum" else RECALL_TOLERANCE


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


def judge(reported: Reported, results: Results, preset: str) -> Verdict:
    """The verdict on the runs of one preset, of one encoder and crop, on the number's data set and protocol.

    Runs on other data under the same name (`is_canonical`) do not count. One seed alone gets its interval from the
    bootstrap over queries, where the metric is a mean over them.
    """
    ours = results.select(preset=preset, dataset=reported.dataset).canonical
    same = ours.select(protocol=reported.protocol, split=reported.split)
    if reported.role == "context":
        return Verdict("not comparable", reason="shown for context")
    if not ours.records:
        return Verdict("pending", reason=f"no run of {preset} on {reported.dataset}")
    if not same.records:
        found = ", ".join(" ".join(words) for words in ours.settings("protocol", "split"))
        return Verdict("not comparable", reason=f"our runs are under {found}")
    values = same.values(reported.metric)
    if not values:
        return Verdict("not comparable", reason=f"our records have no {reported.metric}")
    one_seed = same.bootstrap(reported.metric) if len(values) == 1 else None
    return verdict(reported, values, one_seed)


def verdict(reported: Reported, values: Mapping[int, float], one_seed: Interval | None = None) -> Verdict:
    """Our values by seed, of the same data set and protocol, against a reported number.

    exceeds: the whole 95 % interval is better; reproduced: the interval holds the number, or our mean is
    better, and the mean is at most the tolerance worse; close: worse, outside the interval, within the
    tolerance; short: worse by more than the tolerance. Two seeds or more use t over seeds, one seed
    `one_seed`; without an interval nothing exceeds.
    """
    if not values:
        return Verdict("pending", reason="no run of ours")
    sign = -1.0 if reported.lower_is_better else 1.0
    interval = seed_interval(list(values.values())) if len(values) > 1 else one_seed
    mean = sum(values.values()) / len(values)
    advantage = sign * (mean - reported.number)
    status: Status
    if interval and min(sign * (end - reported.number) for end in (interval.low, interval.high)) > 0:
        status = "exceeds"
    elif advantage < -tolerance(reported.metric) - 1e-9:
        status = "short"
    elif advantage >= 0 or (interval and interval.low <= reported.number <= interval.high):
        status = "reproduced"
    else:
        status = "close"
    return Verdict(status, mean, interval, advantage, interval.test if interval else "1 seed, no interval")


def difference(results: Results, better: str, worse: str, metric: str) -> Outcome:
    """The claim that one preset beats another in a metric, on records of one data set, protocol and encoder.

    The interval is of the advantage of `better`, by paired bootstrap over queries and seeds: above 0 the
    claim holds, below 0 it fails, else it is undecided; pending when a side has no run. Raises CapbenchError
    when the two sides are of different data or encoders.
    """
    sides = [results.select(preset=name) for name in (better, worse)]
    missing = [name for name, side in zip((better, worse), sides, strict=True) if not side.records]
    if missing:
        return Outcome("pending", f"no run of {' and '.join(missing)}")
    both = Results(results.folder, sides[0].latest.records + sides[1].latest.records)
    found = both.settings("dataset", "split", "protocol", "encoder", "dataset_fingerprint")
    if len(found) > 1:
        raise CapbenchError(f"{better} and {worse} are not of the same data and encoder: {found[:3]}")
    interval = advantage(sides[0], sides[1], metric)
    means = [_mean(side, metric) for side in sides]
    return decided(interval, f"{better} {means[0]:.1f}, {worse} {means[1]:.1f}", metric)


def beats(better: str, worse: str, metric: str) -> Callable[[Results], Outcome]:
    """The test that one preset beats another in a metric, on the most telling data set that has both."""

    def test(results: Results) -> Outcome:
        part = results.first_with(better, worse)
        if part is None:
            return Outcome("pending", f"needs {better} and {worse} on one data set")
        found = difference(part, better, worse, metric)
        statement = f"on {part.records[0].dataset} with {part.records[0].encoder}: {found.statement}"
        return Outcome(found.status, statement, found.interval, found.detail)

    return test


def points_at_what_is_named(preset: str) -> Callable[[Results], Outcome]:
    """The test that, where the true boxes are known, a preset points at what a phrase names more often than chance."""

    def test(results: Results) -> Outcome:
        part = results.select(dataset="scenes", preset=preset).latest
        if not part.values("pointing"):
            return Outcome("pending", f"needs {preset} on scenes")
        hits, chance = (float(np.mean(list(part.values(name).values()))) for name in ("pointing", "pointing_chance"))
        interval = advantage(part, part, "pointing", "pointing_chance")
        return decided(interval, f"on scenes: {hits:.1f} % point at what is named, chance {chance:.1f} %", "pointing")

    return test


def advantage(ours: Results, theirs: Results, metric: str, their_metric: str | None = None) -> Interval:
    """How much better ours are in a metric (they may be scored in another one), by paired bootstrap.

    Queries or images are drawn, the same for both, then the seeds of each side; the same seeds where both sides are
    of the same runs.
    """
    same = ours.records == theirs.records
    if is_of_corpus(metric):
        (left, score), (right, _) = ours.counts(metric), theirs.counts(their_metric or metric)
        return paired_bootstrap_corpus(left, right, score, same_runs=same)
    (a, groups), (b, _) = ours.queries(metric), theirs.queries(their_metric or metric)
    if same:
        a, b = a - b, np.zeros_like(b)
    return paired_bootstrap(*((b, a) if metric.endswith("_rank") else (a, b)), groups=groups)


def _mean(results: Results, metric: str) -> float:
    """The metric from the arrays of the records, over seeds."""
    if is_of_corpus(metric):
        counts, score = results.counts(metric)
        return float(score(counts.sum(1)).mean())
    return float(results.queries(metric)[0].mean())


def decided(interval: Interval, statement: str, metric: str) -> Outcome:
    """holds where the whole interval is above 0, fails where it is below, else undecided."""
    status: Literal["holds", "fails", "undecided"] = "undecided"
    if interval.low > 0 or interval.high < 0:
        status = "holds" if interval.low > 0 else "fails"
    return Outcome(status, statement, interval, f"{metric}, {interval.test}")
