"""The records of a folder, as tables and claims ask for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from capbench.base.errors import CapbenchError
from capbench.data.datasets import NOT_PUBLISHED, known_fingerprint
from capbench.evidence.records import Result, load_arrays, load_results
from capbench.metrics.captioning import Score, bleu, bootstrap_corpus
from capbench.metrics.jars import meteor
from capbench.metrics.significance import Interval, bootstrap

MOST_TELLING = ("coco", "flickr30k", "flickr8k", "scenes")  # of the data sets that a claim may be tested on
_PER_QUERY = re.compile(
    r"(image_to_caption|caption_to_image)_(?:r(\d+)|mean_rank)|(rouge_l|cider|spice|pointing|pointing_chance)"
)
_CORPUS = re.compile(r"(region_)?bleu([1-4])(_no_bp)?(?:_(beam\d+))?|meteor")


@dataclass(frozen=True)
class Results:
    """The records of a folder. `latest` keeps, of equal runs on the same data, the one started last."""

    folder: Path
    records: tuple[Result, ...]

    @classmethod
    def load(cls, folder: Path, paper: str | None = None) -> Results:
        return cls(folder, tuple(load_results(folder, paper)))

    def select(self, **wanted: object) -> Results:
        """The records whose named fields have these values: `select(preset="vsepp", dataset="flickr8k")`."""
        for name in wanted:
            if name not in Result.model_fields:
                known = ", ".join(Result.model_fields)
                raise CapbenchError(f"records have no field {name!r}; they have {known}")
        kept = (record for record in self.records if all(getattr(record, n) == v for n, v in wanted.items()))
        return Results(self.folder, tuple(kept))

    @property
    def canonical(self) -> Results:
        """The records of the data that the names of their data sets stand for; see `is_canonical`."""
        return Results(self.folder, tuple(record for record in self.records if is_canonical(record)))

    @cached_property
    def latest(self) -> Results:
        last: dict[tuple[str, ...], Result] = {}
        for record in sorted(self.records, key=lambda record: (record.started, record.file)):
            last[_identity(record)] = record
        return Results(self.folder, tuple(last[key] for key in sorted(last)))

    @property
    def superseded(self) -> int:
        """How many records an equal, later run has replaced."""
        return len(self.records) - len(self.latest.records)

    def settings(self, *names: str) -> list[tuple[str, ...]]:
        """The distinct values of some fields, sorted: `settings("dataset", "encoder")`."""
        return sorted({tuple(str(getattr(record, name)) for name in names) for record in self.records})

    def first_with(self, *presets: str) -> Results | None:
        """The records of the most telling data set, and there of the first encoder and protocol, with all presets."""
        for dataset in MOST_TELLING:
            part = self.select(dataset=dataset)
            for encoder, protocol in part.settings("encoder", "protocol"):
                found = part.select(encoder=encoder, protocol=protocol)
                if all(found.select(preset=name).records for name in presets):
                    return found
        return None

    def values(self, metric: str) -> dict[int, float]:
        """The metric by seed, of the latest records that have it; these must be of one setting."""
        return {r.seed: r.metrics[metric] for r in self._of_one_setting() if metric in r.metrics}

    def queries(self, metric: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Values [seed, query] whose mean is the metric, and where known the image of each query.

        The image comes from "image_of_caption" for captions and from "image_of_phrase" for phrases. Raises
        CapbenchError for a metric that is no mean over queries, without ranks, or for records of several settings.
        """
        rows, groups = [], None
        for record in self._of_one_setting():
            arrays = load_arrays(record, self.folder)
            rows.append(query_values(metric, arrays))
            if metric.startswith("caption_to_image"):
                groups = arrays.get("image_of_caption")
            if metric.startswith("pointing"):
                groups = arrays.get("image_of_phrase")
        if not rows:
            raise CapbenchError(f"no record to take {metric} from")
        if len({len(row) for row in rows}) > 1:
            raise CapbenchError(f"the records differ in their number of queries for {metric}; run them again")
        return np.stack(rows), groups

    def counts(self, metric: str) -> tuple[np.ndarray, Score]:
        """What a metric of the whole corpus (BLEU, METEOR) is made of, [seed, image, statistic], and how.

        Raises CapbenchError for another metric, without the counts, or for records of several settings.
        """
        name, score = _corpus(metric)
        rows = [load_arrays(record, self.folder).get(name) for record in self._of_one_setting()]
        found = [row for row in rows if row is not None]
        if not found or len(found) < len(rows):
            raise CapbenchError(f"a record has no array {name!r}, of which {metric} is made; run it again")
        return np.stack(found), score

    def bootstrap(self, metric: str) -> Interval | None:
        """The interval of one run by resampling its queries or images; None where the metric allows none.

        Raises CapbenchError where the arrays are missing or damaged.
        """
        if not self._of_one_setting()[0].arrays:
            return None
        if is_per_query(metric):
            queries, groups = self.queries(metric)
            return bootstrap(queries[0], groups=groups)
        if is_of_corpus(metric):
            counts, score = self.counts(metric)
            return bootstrap_corpus(counts[0], score)
        return None

    def _of_one_setting(self) -> tuple[Result, ...]:
        found = {_identity(record)[:-1] for record in self.records}
        if len(found) > 1:
            raise CapbenchError(f"records of {len(found)} settings cannot be pooled: {sorted(found)[:3]}")
        return self.latest.records


def is_canonical(record: Result) -> bool:
    """Whether a record is of the data that its data set's name stands for: the published split, the scenes of today.

    The fingerprint decides where that of the name is known, else what the record says of itself.
    """
    known = known_fingerprint(record.dataset)
    if known:
        return record.dataset_fingerprint == known
    if record.published is not None:
        return record.published
    return not any(NOT_PUBLISHED in note for note in record.notes)


def data_name(record: Result) -> str:
    """The name of a record's data set; where the data are not what it stands for, also what they are."""
    if is_canonical(record):
        return record.dataset
    fault = "not as they are drawn today" if record.dataset == "scenes" else NOT_PUBLISHED
    size = f"{record.images:,} {record.split} images, " if record.images else ""
    return f"{record.dataset}, {fault}: {size}data set {record.dataset_fingerprint[:12] or 'unknown'}"


def is_per_query(metric: str) -> bool:
    """Whether a metric is a mean over queries or images: a recall, a mean rank or ROUGE-L, not a median or a sum."""
    return _PER_QUERY.fullmatch(metric) is not None


def is_of_corpus(metric: str) -> bool:
    """Whether a metric comes from counts summed over the images: BLEU or METEOR."""
    return _CORPUS.fullmatch(metric) is not None


def _corpus(metric: str) -> tuple[str, Score]:
    known = _CORPUS.fullmatch(metric)
    if known is None:
        raise CapbenchError(f"{metric} is not made of counts over the corpus; BLEU and METEOR are")
    region, order, without_penalty, beam = known.groups()
    if order is None:
        return "meteor_statistics", meteor
    place, penalty = int(order) - 1, without_penalty is None
    name = f"{region or ''}bleu_{beam or 'statistics'}"
    return name, lambda counts: bleu(counts, brevity_penalty=penalty)[..., place]


def query_values(metric: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """One value a query whose mean is `metric`: from the 0-based ranks for a recall in percent or a mean rank, else
    the image's own ROUGE-L, CIDEr-D or SPICE, or the phrase's hit or chance.

    Raises CapbenchError for a metric that is no mean over queries (a median, rsum), or without the arrays.
    """
    known = _PER_QUERY.fullmatch(metric)
    if known is None:
        raise CapbenchError(f"{metric} is not a mean over queries; recalls and mean ranks are")
    direction, depth, of_image = known.groups()
    if of_image is not None and of_image in arrays:
        return np.asarray(arrays[of_image], np.float64)
    direction = direction or of_image
    if direction not in arrays:
        raise CapbenchError(f"the record has no array {direction!r}; run it again")
    ranks = np.asarray(arrays[direction])
    return 100.0 * (ranks < int(depth)) if depth else ranks + 1.0


def _identity(record: Result) -> tuple[str, ...]:
    names = ("paper", "preset", "dataset", "dataset_fingerprint", "split", "protocol", "encoder")
    return (*(str(getattr(record, name)) for name in names), record.sees, str(record.seed))
