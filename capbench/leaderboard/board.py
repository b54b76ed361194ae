"""The one join of a paper's numbers and our runs; pages, JSON and the terminal only format it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from capbench.base.grouping import grouped
from capbench.data.datasets import NAMES
from capbench.evidence.results import Results
from capbench.evidence.verdicts import BEST_TO_WORST, Claim, Outcome, Reported, Role, Verdict, outcome, verdict
from capbench.leaderboard.pooled import EMBEDDED, SETTING, Runs, gather, marks
from capbench.metrics import registry
from capbench.runs.paper import Paper

_EMBEDDED = "an embedded data set, which no paper reports"
_BY_HAND = "its recipe is not the preset's"


@dataclass(frozen=True, eq=False)
class Match:
    """One reported number and one of our presets: the runs compared, or why there are none."""

    reported: Reported
    preset: str  # empty for a number that is compared with no preset
    verdict: Verdict
    runs: Runs | None = None


def compared(matches: Iterable[Match]) -> dict[tuple[Runs, str], Match]:
    """One match for each of our runs and metrics: that of the number of the run's own encoder.

    Without such a number, or of several, the best verdict decides, as in the tally; among equals the nearest number.
    """
    by_metric: dict[tuple[Runs, str], list[Match]] = {}
    for match in matches:
        if match.runs is not None:
            by_metric.setdefault((match.runs, match.reported.metric), []).append(match)
    return {(runs, key): min(same, key=lambda match: _rank(match, runs)) for (runs, key), same in by_metric.items()}


def _rank(match: Match, runs: Runs) -> tuple[bool, int, float]:
    status = match.verdict.status
    place = BEST_TO_WORST.index(status) if status in BEST_TO_WORST else len(BEST_TO_WORST)
    return match.reported.encoder != runs.first.encoder, place, abs(match.verdict.advantage or 0.0)


def verdicts(matches: Iterable[Match]) -> dict[Runs, dict[str, Verdict]]:
    """The verdicts of our runs, by metric; `compared` says on which of several numbers."""
    by_runs: dict[Runs, dict[str, Verdict]] = {}
    for (runs, key), match in compared(matches).items():
        by_runs.setdefault(runs, {})[key] = match.verdict
    return by_runs


@dataclass(frozen=True)
class Row:
    """One number: ours beside a reported one, ours alone, or a reported one alone, where our fields are empty."""

    paper: str
    preset: str
    dataset: str
    split: str
    protocol: str
    metric: str
    rule: str = ""  # how captions are scored
    dataset_fingerprint: str = ""
    encoder: str = ""
    view: str = ""
    region_provider: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)  # fields of the recipe that are not the preset's
    scoring: str = ""  # how the outputs of another system were scored
    seeds: tuple[int, ...] = ()
    mean: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    test: str = ""
    verdict: str = "not reported"  # or a status of `capbench.evidence.verdicts`
    reason: str = ""
    table: str = ""
    system: str = ""
    role: str = ""
    reported: str = ""
    reported_encoder: str = ""
    reported_crop: str = ""
    confidence: str = ""
    source: str = ""
    marks: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Board:
    """A paper's numbers and claims, and our runs beside them."""

    paper: Paper
    results: Results
    runs: tuple[Runs, ...]  # in the order of the pages
    matches: tuple[Match, ...]  # in the order of reported.csv

    @cached_property
    def outcomes(self) -> tuple[tuple[Claim, Outcome], ...]:
        """Each claim of the paper, and what the runs say of it."""
        return tuple((claim, outcome(claim, self.results)) for claim in self.paper.claims)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every number, those of the paper first."""
        beside = {(match.runs, match.reported.metric) for match in self.matches if match.runs}
        alone = ((runs, key) for runs in self.runs for key in sorted(runs.metrics) if (runs, key) not in beside)
        return (*map(self._of_match, self.matches), *(row(runs, key, self.paper) for runs, key in alone))

    def tally(self, role: Role) -> Counter[str]:
        """How often each verdict was given; "not run" counts the numbers without one.

        A target counts once, by the best of the runs beside it. A baseline counts once for each run beside it.
        """
        matches = (match for match in self.matches if match.reported.role == role)
        counted = grouped(matches, lambda match: (match.reported, None if role == "target" else match.runs))
        verdicts = ({match.verdict.status for match in group} for group in counted.values())
        return Counter(next((name for name in BEST_TO_WORST if name in each), "not run") for each in verdicts)

    def _of_match(self, match: Match) -> Row:
        number = match.reported
        theirs: dict[str, Any] = {
            "verdict": match.verdict.status,
            "reason": match.verdict.reason,
            "reported": number.value,
            "reported_encoder": number.encoder,
            "reported_crop": number.crop,
            **{name: getattr(number, name) for name in ("table", "system", "role", "confidence", "source")},
        }
        if match.runs is not None:
            return row(match.runs, number.metric, self.paper, **theirs)
        where = (match.preset, number.dataset, number.split, number.protocol, number.metric)
        return Row(self.paper.name, *where, registry.metric(number.metric).rule, **theirs)


def row(runs: Runs, metric: str, paper: Paper | None = None, **theirs: Any) -> Row:
    """Our number in a metric, with fields of a reported one; without a paper that of another system."""
    estimate = runs.estimate(metric)
    interval = estimate.interval if estimate else None
    ours: dict[str, Any] = {
        **{name: getattr(runs.first, name) for name in SETTING},
        "seeds": tuple(sorted(estimate.values)) if estimate else (),
        "mean": estimate.mean if estimate else None,
        "marks": tuple(dict.fromkeys(mark for record in runs.records for mark in marks(record, paper))),
        "reason": _why_not_judged(runs),
    }
    if interval:
        ours |= {"ci_low": interval.low, "ci_high": interval.high, "test": interval.test}
    rule = registry.rule(metric, runs.first.tokenizer)
    return Row(paper=runs.first.paper, metric=metric, rule=rule, **(ours | theirs))


def board(paper: Paper, results: Results, origin: str = "") -> Board:
    """A paper's numbers beside the runs of these records; `origin` says where the records are from."""
    runs = tuple(gather(paper, results, origin))
    matches = tuple(match for number in paper.reported for match in _matches(number, runs))
    return Board(paper, results.select(paper=paper.name), runs, matches)


def _why_not_judged(runs: Runs) -> str:
    if not runs.canonical:
        return runs.data
    return _EMBEDDED if runs.embedded else _BY_HAND if runs.first.overrides else ""


def _matches(number: Reported, groups: Sequence[Runs]) -> Iterator[Match]:
    """Our runs under the number's own data set, protocol and split; then each preset that has none, with the reason.

    Runs on data that are not canonical, on a user's own, or whose recipe was changed by hand are never among them.
    """
    if number.role == "context" or number.dataset in EMBEDDED:
        reason = "shown for context" if number.role == "context" else _EMBEDDED
        yield Match(number, "", Verdict("not comparable", reason=reason))
        return
    known = number.dataset in NAMES
    on_dataset = [r for r in groups if known and r.judged and r.first.dataset == number.dataset]
    on_dataset = [r for r in on_dataset if r.first.preset in number.presets]
    same = [r for r in on_dataset if (r.first.protocol, r.first.split) == (number.protocol, number.split)]
    for runs in same:
        if estimate := runs.estimate(number.metric):
            judged = verdict(number, estimate.values, estimate.interval)
        else:
            judged = Verdict("not comparable", reason=runs.why_missing(number.metric))
        yield Match(number, runs.first.preset, judged, runs)
    have = {runs.first.preset for runs in same}
    for preset in (name for name in number.presets if name not in have):
        if other := {f"{r.first.protocol} {r.first.split}" for r in on_dataset if r.first.preset == preset}:
            judged = Verdict("not comparable", reason=f"our runs are under {', '.join(sorted(other))}")
        else:
            judged = Verdict("pending", reason=f"no run of {preset} on {number.dataset}")
        yield Match(number, preset, judged)
