"""Our records pooled over seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from capbench.base.errors import CapbenchError
from capbench.base.grouping import grouped
from capbench.evidence.records import SCHEMA_VERSION, Result, warn_of_damage
from capbench.evidence.results import Results, data_name, is_canonical
from capbench.metrics import registry
from capbench.metrics.significance import Interval, seed_interval
from capbench.runs.paper import Paper, metric_of
from capbench.runs.released import PREFIX
from capbench.training import checkpoint

EMBEDDED = frozenset({"scenes"})  # data sets that no paper has; never compared with a paper's number
SETTING = (
    "preset",
    "overrides",
    "dataset",
    "dataset_fingerprint",
    "split",
    "protocol",
    "encoder",
    "view",
    "region_provider",
    "scoring",
)


@dataclass(frozen=True)
class Estimate:
    """The mean of a metric over the seeds that have it."""

    mean: float
    values: Mapping[int, float]  # by seed
    interval: Interval | None  # over seeds, or of one seed over its queries where its arrays are there

    @property
    def half(self) -> float | None:
        """Half the width of the 95 % interval."""
        return (self.interval.high - self.interval.low) / 2 if self.interval else None


@dataclass(frozen=True, eq=False)
class Runs:
    """The latest record of each seed of one setting."""

    results: Results
    origin: str = ""  # empty for committed records, else where they are from: "this machine"
    _estimates: dict[str, Estimate | None] = field(default_factory=dict)
    _of_seed: dict[int, Results] = field(default_factory=dict)  # with their arrays, once they are read

    @property
    def records(self) -> tuple[Result, ...]:
        return tuple(sorted(self.results.records, key=lambda record: record.seed))

    @property
    def first(self) -> Result:
        """Any record, for what all of one setting share."""
        return self.records[0]

    @property
    def metrics(self) -> set[str]:
        return {key for record in self.records for key in record.metrics}

    @property
    def embedded(self) -> bool:
        return self.first.dataset in EMBEDDED

    @property
    def canonical(self) -> bool:
        """Whether the data are what the data set's name stands for; other runs stand apart."""
        return is_canonical(self.first)

    @property
    def judged(self) -> bool:
        """Whether they are set beside a paper's numbers: the data are canonical, and the recipe is the preset's own."""
        return self.canonical and not self.first.overrides

    @property
    def data(self) -> str:
        """The name of the data."""
        return data_name(self.first)

    def estimate(self, metric: str) -> Estimate | None:
        """None where no record has the metric."""
        if metric not in self._estimates:
            values = self.results.values(metric)
            mean = sum(values.values()) / max(1, len(values))
            self._estimates[metric] = Estimate(mean, values, self._interval(metric, values)) if values else None
        return self._estimates[metric]

    def _interval(self, metric: str, values: Mapping[int, float]) -> Interval | None:
        if len(values) > 1:
            return seed_interval(list(values.values()))
        (seed,) = values
        try:
            return self._of_seed.setdefault(seed, self.results.select(seed=seed)).bootstrap(metric)
        except CapbenchError as error:  # the arrays are lost or damaged
            warn_of_damage(error)
            return None

    def why_missing(self, metric: str) -> str:
        """Why no record has a metric: the record's note about it, else that they lack it."""
        notes = (note for record in self.records for note in record.notes)
        about = (note for note in notes if note.lower().startswith(registry.metric(metric).noted_as))
        return next(about, f"the records have no {metric}")


def setting(record: Result) -> tuple[str, ...]:
    """What the seeds of one setting share."""
    return tuple(str(getattr(record, name)) for name in SETTING)


def gather(paper: Paper, results: Results, origin: str = "") -> list[Runs]:
    """A paper's records by setting, in the order of its presets; data that are not canonical come last.

    A preset that was changed by hand follows the preset.
    """
    mine = results.select(paper=paper.name).latest
    settings = sorted(grouped(mine.records, setting).items())
    order = {name: _preset_order(paper, name) for (name,) in mine.settings("dataset")}

    def place(runs: Runs) -> tuple[Any, ...]:
        record = runs.first
        presets = order[record.dataset]
        rank = presets.index(record.preset) if record.preset in presets else len(presets)
        where = (record.split, record.protocol, record.encoder)
        of_data = (runs.embedded, record.dataset, not runs.canonical, record.dataset_fingerprint)
        return (*of_data, *where, rank, record.preset, record.variant, record.sees)

    return sorted((Runs(Results(mine.folder, tuple(records)), origin) for _, records in settings), key=place)


def parts(groups: Sequence[Runs], *names: str) -> dict[tuple[str, ...], list[Runs]]:
    """Runs by fields of their records; "data" is the name of their data."""
    return grouped(
        groups, lambda runs: tuple(runs.data if name == "data" else str(getattr(runs.first, name)) for name in names)
    )


def by_metric(paper: Paper, groups: Sequence[Runs]) -> dict[str, list[Runs]]:
    """Runs by the metric that chooses their snapshot: models that differ in it have different metrics."""
    return grouped(groups, lambda runs: metric_of(paper, runs.first.recipe))


def marks(record: Result, paper: Paper | None = None) -> tuple[str, ...]:
    """What a reader must know of a record: an older schema, a dirty tree, a preset that has changed since."""
    remarks = list(record.marks)
    if record.schema_version != SCHEMA_VERSION and not any(mark.startswith("schema") for mark in remarks):
        remarks.append(f"schema {record.schema_version}")
    if record.dirty and "dirty tree" not in remarks:
        remarks.append("dirty tree")
    if record.commit == "unknown":
        remarks.append("commit unknown")
    if record.preset.startswith(PREFIX):
        remarks.append("released weights, not trained by capbench")
    elif paper is not None and record.recipe:
        try:
            today = paper.recipe(record.preset, record.dataset, record.overrides)
            recipe = json.loads(json.dumps(asdict(today.as_in(record.recipe))))
        except CapbenchError:
            remarks.append("no such preset now")
        else:
            if changed := changes(recipe, record.recipe):
                remarks.append(f"recipe differs from the preset of today in {', '.join(changed)}")
    return tuple(remarks)


def changes(today: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """The fields in which a recipe has changed. A field that was added since is no change."""
    names = (line.partition(":")[0] for line in checkpoint.differences(today, then))
    return [name for name in names if _has(then, name)]


def _has(recipe: Any, name: str) -> bool:
    """Whether a recipe has a field; "training.epochs" is the field `epochs` of its field `training`."""
    for part in name.split("."):
        if not isinstance(recipe, Mapping) or part not in recipe:
            return False
        recipe = recipe[part]
    return True


def _preset_order(paper: Paper, dataset: str) -> list[str]:
    try:
        return list(paper.presets(dataset))
    except CapbenchError:
        return list(paper.headline)
