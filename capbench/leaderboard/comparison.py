"""Our records pooled over seeds, and each number of a paper set beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from capbench.base.errors import CapbenchError
from capbench.evidence.records import SCHEMA_VERSION, Result
from capbench.evidence.results import Results, data_name, is_canonical
from capbench.evidence.verdicts import Reported, Verdict, judge, verdict
from capbench.metrics.significance import Interval, seed_interval
from capbench.runs.paper import Paper, metric_of
from capbench.training import checkpoint

EMBEDDED = frozenset({"scenes"})  # data sets that no paper has; never set against a paper's number
SETTING = ("preset", "dataset", "dataset_fingerprint", "split", "protocol", "encoder", "view", "region_provider")


@dataclass(frozen=True)
class Estimate:
    """The mean of a metric over the seeds that have it; `interval` is None where nothing gives one."""

    mean: float
    values: Mapping[int, float]
    interval: Interval | None

    @property
    def half(self) -> float | None:
        """Half the width of the 95 % interval."""
        return (self.interval.high - self.interval.low) / 2 if self.interval else None


@dataclass(frozen=True, eq=False)
class Runs:
    """The latest record of each seed of one setting."""

    results: Results
    _estimates: dict[str, Estimate | None] = field(default_factory=dict)

    @property
    def records(self) -> tuple[Result, ...]:
        return tuple(sorted(self.results.records, key=lambda record: record.seed))

    @property
    def first(self) -> Result:
        """Any record, for what all of one setting share."""
        return self.records[0]

    @property
    def embedded(self) -> bool:
        return self.first.dataset in EMBEDDED

    @property
    def canonical(self) -> bool:
        """Whether these are runs on the data that the name of the data set stands for; others stand apart."""
        return is_canonical(self.first)

    @property
    def data(self) -> str:
        """What the data are called."""
        return data_name(self.first)

    def estimate(self, metric: str) -> Estimate | None:
        """None where no record has the metric. One seed has an interval where its ranks are at hand."""
        if metric not in self._estimates:
            values = self.results.values(metric)
            self._estimates[metric] = (
                Estimate(sum(values.values()) / len(values), values, self._interval(metric, values)) if values else None
            )
        return self._estimates[metric]

    def _interval(self, metric: str, values: Mapping[int, float]) -> Interval | None:
        if len(values) > 1:
            return seed_interval(list(values.values()))
        only = self.results.select(seed=next(iter(values)))
        try:
            return only.bootstrap(metric)
        except CapbenchError:  # the arrays are lost or changed; the page's marks say so
            return None

    def why_missing(self, metric: str) -> str:
        """Why no record has a metric: what a note of theirs says about it, else that they lack it."""
        names = (metric.lower(), metric.partition("_")[0].lower(), metric.rstrip("0123456789").lower())
        for record in self.records:
            for note in record.notes:
                if note.lower().startswith(names):
                    return note
        return f"the records have no {metric}"


@dataclass(frozen=True)
class Row:
    """One number: of ours beside a reported one, of ours alone, or a reported one that still waits for ours.

    `verdict` is a status of `capbench.evidence.verdicts`, or "not reported". Without a run our fields are empty.
    """

    paper: str
    preset: str
    dataset: str
    split: str
    protocol: str
    metric: str
    dataset_fingerprint: str = ""
    encoder: str = ""
    view: str = ""
    region_provider: str | None = None
    seeds: tuple[int, ...] = ()
    mean: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    test: str = ""
    verdict: str = "not reported"
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


def marks(record: Result, paper: Paper | None = None) -> tuple[str, ...]:
    """What a reader must know of a record: an older schema, a dirty tree, a preset that has changed since."""
    found = list(record.marks)
    if record.schema_version != SCHEMA_VERSION and not any(mark.startswith("schema") for mark in found):
        found.append(f"schema {record.schema_version}")
    if record.dirty and "dirty tree" not in found:
        found.append("dirty tree")
    if record.commit == "unknown":
        found.append("commit unknown")
    if paper is not None and record.recipe:
        try:
            now = json.loads(json.dumps(asdict(paper.recipe(record.preset, record.dataset))))
        except CapbenchError:
            found.append("no such preset now")
        else:
            changed = changes(now, record.recipe)
            if changed:
                found.append(f"recipe differs from the preset of today in {', '.join(changed)}")
    return tuple(found)


def changes(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """The fields in which a recipe has changed; one that it lacked then was added since, and is no change."""
    names = (line.partition(":")[0] for line in checkpoint.differences(now, then))
    return [name for name in names if _has(then, name)]


def _has(recipe: Mapping[str, Any], name: str) -> bool:
    """Whether a recipe has a field, "training.average" being the field `average` of its field `training`."""
    first, _, rest = name.partition(".")
    if first not in recipe:
        return False
    inner = recipe[first]
    return not rest or (isinstance(inner, Mapping) and _has(inner, rest))


def by_metric(paper: Paper, groups: Sequence[Runs]) -> dict[str, list[Runs]]:
    """Runs by the metric that chooses their snapshot: models that differ in it are measured by different numbers."""
    kinds: dict[str, list[Runs]] = {}
    for runs in groups:
        kinds.setdefault(metric_of(paper, runs.first.recipe), []).append(runs)
    return kinds


def gather(paper: Paper, results: Results) -> list[Runs]:
    """A paper's records by setting, the latest of each seed, in the order of its presets.

    Runs on other data under a data set's name come after those on the data that it stands for.
    """
    mine = results.select(paper=paper.name).latest
    settings: dict[tuple[str, ...], list[Result]] = {}
    for record in mine.records:
        settings.setdefault(tuple(str(getattr(record, name)) for name in SETTING), []).append(record)
    groups = [Results(mine.folder, tuple(settings[key])) for key in sorted(settings)]
    order = {name: _preset_order(paper, name) for (name,) in mine.settings("dataset")}

    def place(runs: Runs) -> tuple[Any, ...]:
        record = runs.first
        presets = order[record.dataset]
        rank = presets.index(record.preset) if record.preset in presets else len(presets)
        where = (record.split, record.protocol, record.encoder)
        of_data = (runs.embedded, record.dataset, not runs.canonical, record.dataset_fingerprint)
        return (*of_data, *where, rank, record.preset, record.sees)

    return sorted(map(Runs, groups), key=place)


def set_beside(reported: Reported, groups: Iterable[Runs]) -> list[tuple[Runs, Verdict]]:
    """Our runs under a reported number's own conditions, with the verdict on each; none for mere context.

    Runs on other data than the published are never among them.
    """
    if reported.role == "context":
        return []
    wanted = (reported.dataset, reported.protocol, reported.split)
    pairs = []
    for runs in groups:
        record = runs.first
        if runs.embedded or not runs.canonical or record.preset not in reported.presets:
            continue
        if (record.dataset, record.protocol, record.split) != wanted:
            continue
        found = runs.estimate(reported.metric)
        if found is None:
            pairs.append((runs, Verdict("not comparable", reason=runs.why_missing(reported.metric))))
        else:
            pairs.append((runs, verdict(reported, found.values, found.interval)))
    return pairs


def rows(papers: Mapping[str, Paper], results: Results) -> list[Row]:
    """Every number of every paper and of ours, in the order of the pages."""
    found: list[Row] = []
    for paper in papers.values():
        groups = gather(paper, results)
        matched: set[tuple[int, str]] = set()
        for reported in paper.reported:
            pairs = set_beside(reported, groups)
            matched |= {(id(runs), reported.metric) for runs, _ in pairs}
            found += [_row(paper, runs, reported.metric, reported, judged) for runs, judged in pairs]
            if not pairs:
                found += _without_ours(paper, reported, results)
        for runs in groups:
            keys = sorted({key for record in runs.records for key in record.metrics})
            found += [_row(paper, runs, key) for key in keys if (id(runs), key) not in matched]
    return found


def _without_ours(paper: Paper, reported: Reported, results: Results) -> Iterator[Row]:
    mine = results.select(paper=paper.name)
    for preset in reported.presets or ("",):
        judged = judge(reported, mine, preset)
        yield Row(
            paper.name, preset, reported.dataset, reported.split, reported.protocol, reported.metric,
            verdict=judged.status, reason=judged.reason, **_of_reported(reported),
        )  # fmt: skip


def _row(paper: Paper, runs: Runs, metric: str, reported: Reported | None = None, judged: Verdict | None = None) -> Row:
    record, found = runs.first, runs.estimate(metric)
    interval = found.interval if found else None
    marked = tuple(dict.fromkeys(mark for each in runs.records for mark in marks(each, paper)))
    reason = "an embedded data set, which no paper reports" if runs.embedded else ""
    if not runs.canonical:
        reason = runs.data
    return Row(
        paper=paper.name,
        **{name: getattr(record, name) for name in SETTING},
        metric=metric,
        seeds=tuple(sorted(found.values)) if found else (),
        mean=found.mean if found else None,
        ci_low=interval.low if interval else None,
        ci_high=interval.high if interval else None,
        test=interval.test if interval else "",
        marks=marked,
        verdict=judged.status if judged else "not reported",
        reason=judged.reason if judged else reason,
        **(_of_reported(reported) if reported else {}),
    )


def _of_reported(reported: Reported) -> dict[str, Any]:
    names = ("table", "system", "role", "confidence", "source")
    ours = {name: getattr(reported, name) for name in names}
    return {
        **ours,
        "reported": reported.value,
        "reported_encoder": reported.encoder,
        "reported_crop": reported.crop,
    }


def _preset_order(paper: Paper, dataset: str) -> list[str]:
    try:
        return list(paper.presets(dataset))
    except CapbenchError:
        return list(paper.headline)
