"""Two systems on the same queries: how far apart each metric lies, and whether chance alone could do it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Int

from capbench.base.errors import CapbenchError, unknown
from capbench.evidence import resampling
from capbench.evidence.records import Result
from capbench.evidence.resampling import Arrays
from capbench.metrics import registry
from capbench.metrics.significance import holm

SAMPLES, LEVEL = 5000, 0.05
DATA = ("dataset", "dataset_fingerprint", "split", "protocol")  # what records share that can be compared
Verdict = Literal["better", "worse", "no difference shown", "not tested"]


@dataclass(frozen=True, eq=False)
class Side:
    """The runs of one system under one setting, one a seed: all that a comparison needs."""

    name: str  # for the reader
    data: Mapping[str, str]  # what both sides must have alike, by the name of the field
    metrics: tuple[Mapping[str, float], ...]  # one a seed
    arrays: tuple[Arrays, ...] = field(repr=False)  # likewise, what the metrics were computed from

    def mean(self, metric: str) -> float:
        return sum(each[metric] for each in self.metrics) / len(self.metrics)


@dataclass(frozen=True)
class Difference:
    """One metric of A and B, as means over their seeds."""

    metric: str
    a: float
    b: float
    difference: float  # b - a
    verdict: Verdict  # on B; "better" and "worse" where `p_holm` is below 0.05
    low: float | None = None  # the 95 % interval of the difference
    high: float | None = None
    p: float | None = None  # two-sided, that there is no difference
    p_holm: float | None = None  # adjusted for all metrics that are tested
    queries: int | None = None
    images: int | None = None  # that the queries are of, and that are drawn
    test: str = ""  # its name, or why there is none


@dataclass(frozen=True)
class Comparison:
    """B against A, the baseline."""

    a: str
    b: str
    data: Mapping[str, str]  # that both were scored on
    seeds: tuple[int, int]  # how many of A and of B
    differences: tuple[Difference, ...]  # by metric

    @property
    def worse(self) -> tuple[str, ...]:
        """The metrics in which B is worse."""
        return tuple(each.metric for each in self.differences if each.verdict == "worse")


def compare(a: Side, b: Side, metrics: Sequence[str] | None = None, samples: int = SAMPLES) -> Comparison:
    """B against A, the baseline, in some metrics; in all that both have and that tables show if none is named.

    The interval is that of the paired bootstrap: images are drawn, each with all of its queries, the same for both
    sides, then the seeds of each side. The p-value inverts it (`significance.two_sided_p`), and Holm's rule adjusts it
    for the number of metrics tested. A metric that is not made of queries or counts (a median, a perplexity) has a
    difference alone. The seeds of each side are few, and their spread is understated.

    Raises CapbenchError for sides of other data, split or protocol, for other queries, and for a metric that not every
    run has.

    >>> data = {"dataset": "flickr8k", "split": "test"}
    >>> ranks = np.array([0, 1] * 50)
    >>> ours = Side("ours", data, ({"image_to_caption_r1": 100.0},), ({"image_to_caption": 0 * ranks},))
    >>> baseline = Side("baseline", data, ({"image_to_caption_r1": 50.0},), ({"image_to_caption": ranks},))
    >>> (found,) = compare(baseline, ours).differences
    >>> found.difference, found.verdict, found.queries, found.test
    (50.0, 'better', 100, 'paired bootstrap over 100 queries and 1 against 1 seeds')
    """
    if differing := [name for name in {**a.data, **b.data} if a.data.get(name) != b.data.get(name)]:
        fields = "; ".join(f"{name}: {a.data.get(name)!r} and {b.data.get(name)!r}" for name in differing)
        raise CapbenchError(f"{a.name} and {b.name} cannot be compared, for they differ in {fields}")
    if unknown_fields := [name for name, value in a.data.items() if not value]:
        raise CapbenchError(f"{a.name} and {b.name} do not say on what they were scored: no {unknown_fields[0]}")
    shared = [key for key in a.metrics[0] if all(key in each for each in (*a.metrics, *b.metrics))]
    for key in metrics or ():
        if key not in shared:
            raise unknown(f"metric of both {a.name} and {b.name}", key, shared)
    chosen = list(dict.fromkeys(metrics or (entry.key for entry in registry.columns(shared))))
    if not chosen:
        raise CapbenchError(f"{a.name} and {b.name} have no metric in common")
    found = [_difference(a, b, key, samples) for key in chosen]
    return Comparison(a.name, b.name, a.data, (len(a.metrics), len(b.metrics)), tuple(_judged(found)))


def side(name: str, records: Sequence[Result], arrays: Sequence[Arrays]) -> Side:
    """The side of a comparison that records of one setting are, one a seed. Raises CapbenchError for other records."""
    for wanted in (*DATA, "paper", "variant", "encoder", "sees", "scoring"):
        if len(values := {str(getattr(record, wanted)) for record in records}) > 1:
            raise CapbenchError(
                f"{name} is not one setting: its records differ in {wanted}: {', '.join(sorted(values))}"
            )
    if len({record.seed for record in records}) < len(records):
        raise CapbenchError(f"{name} has two records of one seed; leave one out")
    data = {field: str(getattr(records[0], field)) for field in DATA} | {"tokeniser": _tokeniser(records[0])}
    return Side(name, data, tuple(record.metrics for record in records), tuple(arrays))


def _tokeniser(record: Result) -> str:
    """What split the captions that were scored; a record says so where it is not the usual one."""
    said = (note.partition(": ")[2].partition(",")[0] for note in record.notes if note.startswith("tokeniser: "))
    return next(said, "PTB")


def _difference(a: Side, b: Side, key: str, samples: int) -> Difference:
    """One metric; its verdict is that of the sign alone until the p-values of the others are known."""
    entry = registry.metric(key)
    means = a.mean(key), b.mean(key)
    plain = Difference(key, *means, means[1] - means[0], "not tested")
    if entry.resampled == "no":
        return replace(plain, test="it is not made of queries or counts that could be drawn anew")
    try:
        of_a, of_b = _drawn(a, key), _drawn(b, key)
    except CapbenchError as error:
        return replace(plain, test=str(error))
    if not np.array_equal(of_a, of_b):
        raise CapbenchError(
            f"{a.name} and {b.name} cannot be compared in {key}: they have other queries, "
            f"{of_a.sum():,} of {len(of_a):,} images and {of_b.sum():,} of {len(of_b):,}"
        )
    better = resampling.advantage(b.arrays, a.arrays, key, samples=samples)
    low, high = (-better.high, -better.low) if entry.lower_is_better else (better.low, better.high)
    verdict: Verdict = "better" if better.mean > 0 else "worse"
    return replace(
        plain, verdict=verdict, low=low, high=high, p=better.p,
        queries=int(of_a.sum()), images=len(of_a), test=better.test,
    )  # fmt: skip


def _drawn(side: Side, key: str) -> Int[np.ndarray, " image"]:
    """How many queries of a metric each image has. Raises CapbenchError without what it is made of."""
    if registry.metric(key).resampled == "queries":
        rows, images = resampling.queries(side.arrays, key)
        return np.ones(rows.shape[1], np.int64) if images is None else np.unique(images, return_counts=True)[1]
    made = resampling.counts(side.arrays, key)
    return made[0][:, [3, 7]].sum(1) if key == "rsum" else np.ones(made.shape[1], np.int64)


def _judged(found: Sequence[Difference]) -> Iterator[Difference]:
    adjusted = iter(holm([each.p for each in found if each.p is not None]))
    for each in found:
        if each.p is None:
            yield each
            continue
        p_holm = next(adjusted)
        yield replace(each, p_holm=p_holm, verdict=each.verdict if p_holm < LEVEL else "no difference shown")
