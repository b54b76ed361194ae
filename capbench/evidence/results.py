"""The records of a folder: selected, pooled over seeds, resampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from operator import itemgetter
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from capbench.base.errors import CapbenchError
from capbench.base.grouping import grouped
from capbench.data.datasets import NOT_PUBLISHED, default_encoder, known_fingerprint
from capbench.evidence import resampling
from capbench.evidence.records import Result, load_arrays, load_results
from capbench.metrics import registry
from capbench.metrics.captioning import bootstrap_corpus
from capbench.metrics.significance import Interval, bootstrap

MOST_TELLING = ("coco", "flickr30k", "flickr8k", "scenes")  # a claim is tested on the first that has its runs


@dataclass(frozen=True)
class Results:
    """The records of a folder."""

    folder: Path
    records: tuple[Result, ...]

    @classmethod
    def load(cls, folder: Path, paper: str | None = None) -> Results:
        return cls(folder, tuple(load_results(folder, paper)))

    def select(self, **wanted: object) -> Results:
        """The records whose named fields have these values: `select(preset="vsepp", dataset="flickr8k")`."""
        if unknown := [name for name in wanted if name not in Result.model_fields]:
            raise CapbenchError(f"records have no field {unknown[0]!r}; they have {', '.join(Result.model_fields)}")
        return self._where(lambda record: all(getattr(record, name) == value for name, value in wanted.items()))

    def without(self, others: Results) -> Results:
        """The records that are not among others, by file name, which no two records share."""
        names = {record.file for record in others.records}
        return self._where(lambda record: record.file not in names)

    @property
    def canonical(self) -> Results:
        """The records of published splits and of the present scenes; see `is_canonical`."""
        return self._where(is_canonical)

    @property
    def plain(self) -> Results:
        """The records whose recipe is their preset's own, nothing of it set by hand."""
        return self._where(lambda record: not record.overrides)

    @cached_property
    def latest(self) -> Results:
        """Of records of one setting, seed and data, the one started last."""
        by_age = sorted(self.records, key=lambda record: (record.started, record.file))
        last = {_identity(record): record for record in by_age}
        return Results(self.folder, tuple(last[key] for key in sorted(last)))

    @property
    def superseded(self) -> int:
        """How many records a later run of the same setting, seed and data has replaced."""
        return len(self.records) - len(self.latest.records)

    def settings(self, *names: str) -> list[tuple[str, ...]]:
        """The distinct values of some fields, sorted: `settings("dataset", "encoder")`."""
        return sorted({tuple(str(getattr(record, name)) for name in names) for record in self.records})

    def first_with(self, *presets: str) -> Results | None:
        """The records of the most telling data set and setting that has all presets; None without one.

        Of several settings it is that with the most seeds, counted for the preset that has the fewest; then that of
        the default encoder, then the first by name. Presets that see images alike go before others.
        """
        for dataset in MOST_TELLING:
            settings = grouped(self.select(dataset=dataset).records, _shared).values()
            if found := [each for records in settings for each in _candidates(records, presets)]:
                return Results(self.folder, min(found, key=itemgetter(0))[1])
        return None

    def values(self, metric: str) -> dict[int, float]:
        """The metric by seed, from the latest records that have it. Raises CapbenchError for several settings."""
        return {r.seed: r.metrics[metric] for r in self._of_one_setting() if metric in r.metrics}

    def arrays(self) -> tuple[dict[str, np.ndarray], ...]:
        """The arrays of the latest record of each seed, in the order of `latest`.

        Raises CapbenchError for several settings, and for arrays that are missing or damaged.
        """
        return self._arrays

    def queries(self, metric: str) -> tuple[Float[np.ndarray, "seed query"], Int[np.ndarray, " query"] | None]:
        """Values whose mean is the metric, and each query's image (None where a query is an image).

        Raises CapbenchError for a metric that is no mean over queries, without its array, or for several settings.
        """
        return resampling.queries(self.arrays(), metric)

    def counts(self, metric: str) -> Int[np.ndarray, "seed image statistic"]:
        """What a metric of the whole corpus (BLEU, METEOR) or a sum of recalls (rsum) is computed from.

        Raises CapbenchError for another metric, without the counts, or for several settings.
        """
        return resampling.counts(self.arrays(), metric)

    def bootstrap(self, metric: str) -> Interval | None:
        """The interval of one run by resampling its queries or images; None for a metric that cannot be resampled.

        Raises CapbenchError where the arrays are missing or damaged.
        """
        entry = registry.metric(metric)
        if entry.resampled in ("jointly", "no") or not self._of_one_setting()[0].arrays:
            return None
        if entry.resampled == "corpus":
            return bootstrap_corpus(self.counts(metric)[0], entry.compute)
        queries, groups = self.queries(metric)
        return bootstrap(queries[0], groups=groups)

    @cached_property
    def _arrays(self) -> tuple[dict[str, np.ndarray], ...]:
        return tuple(load_arrays(record, self.folder) for record in self._of_one_setting())

    def _where(self, kept: Callable[[Result], bool]) -> Results:
        return Results(self.folder, tuple(filter(kept, self.records)))

    def _of_one_setting(self) -> tuple[Result, ...]:
        settings = {_identity(record)[:-1] for record in self.records}
        if len(settings) > 1:
            raise CapbenchError(f"records of {len(settings)} settings cannot be pooled: {sorted(settings)[:3]}")
        return self.latest.records


def is_canonical(record: Result) -> bool:
    """Whether a record is of the published split, or of the scenes as they are drawn today.

    The fingerprint decides where one is known, else what the record says.
    """
    fingerprint = known_fingerprint(record.dataset)
    if fingerprint:
        return record.dataset_fingerprint == fingerprint
    if record.published is not None:
        return record.published
    return not any(NOT_PUBLISHED in note for note in record.notes)


def data_name(record: Result) -> str:
    """The name of a record's data set, with what sets its data apart where they are not canonical."""
    if is_canonical(record):
        return record.dataset
    fault = "not as they are drawn today" if record.dataset == "scenes" else NOT_PUBLISHED
    size = f"{record.images:,} {record.split} images, " if record.images else ""
    return f"{record.dataset}, {fault}: {size}data set {record.dataset_fingerprint[:12] or 'unknown'}"


def _shared(record: Result) -> tuple[str, ...]:
    """What records share whose presets can be compared."""
    return record.encoder, record.protocol, record.split, record.dataset_fingerprint


def _candidates(
    records: Sequence[Result], presets: Sequence[str]
) -> Iterator[tuple[tuple[object, ...], tuple[Result, ...]]]:
    """Of records that share a setting those with one view of each preset, behind their rank; the least rank is best."""
    for views in product(*(sorted({r.sees for r in records if r.preset == name}) for name in presets)):
        view_of = dict(zip(presets, views, strict=True))
        kept = tuple(r for r in records if r.sees == view_of.get(r.preset, views[0]))
        fewest = min(len({r.seed for r in kept if r.preset == name}) for name in presets)
        other = kept[0].encoder != default_encoder(kept[0].dataset)
        yield (len(set(views)), -fewest, other, *_shared(kept[0]), *views), kept


def _identity(record: Result) -> tuple[str, ...]:
    names = ("paper", "variant", "dataset", "dataset_fingerprint", "split", "protocol", "encoder")
    return (*(str(getattr(record, name)) for name in names), record.sees, record.scoring, str(record.seed))
