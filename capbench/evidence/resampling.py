"""What metrics are resampled from: the arrays of the runs of one setting, one set for each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from capbench.base.errors import CapbenchError
from capbench.metrics import registry
from capbench.metrics.captioning import paired_bootstrap_corpus
from capbench.metrics.rsum import rsum_statistics
from capbench.metrics.significance import Interval, paired_bootstrap

Arrays = Mapping[str, np.ndarray]


def queries(
    arrays: Sequence[Arrays], metric: str
) -> tuple[Float[np.ndarray, "seed query"], Int[np.ndarray, " query"] | None]:
    """Values whose mean is the metric, and each query's image (None where a query is an image).

    Raises CapbenchError for a metric that is no mean over queries, without its array or without a run.
    """
    entry = registry.metric(metric)
    rows = [entry.per_query(each) for each in arrays]
    if not rows:
        raise CapbenchError(f"no record has {metric}")
    if len({len(row) for row in rows}) > 1:
        raise CapbenchError(f"the records differ in their number of queries for {metric}; run them again")
    return np.stack(rows), arrays[-1].get(entry.image_of_query)


def counts(arrays: Sequence[Arrays], metric: str) -> Int[np.ndarray, "seed image statistic"]:
    """What a metric of the whole corpus (BLEU, METEOR) or a sum of recalls (rsum) is computed from.

    Raises CapbenchError for another metric or without the counts.
    """
    entry = registry.metric(metric)
    if entry.resampled not in ("corpus", "jointly"):
        raise CapbenchError(f"{metric} is not made of counts over the corpus; BLEU and METEOR are")
    wanted = ("image_to_caption", "caption_to_image", "image_of_caption") if not entry.array else (entry.array,)
    for name in wanted:
        if not arrays or any(name not in each for each in arrays):
            raise CapbenchError(f"a record has no array {name!r}, of which {metric} is made; run it again")
    made = [[each[name] for name in wanted] for each in arrays]
    rows = [rsum_statistics(*each) if entry.resampled == "jointly" else each[0] for each in made]
    if len({row.shape for row in rows}) > 1:
        raise CapbenchError(f"the records differ in their number of images for {metric}; run them again")
    return np.stack(rows)


def advantage(
    ours: Sequence[Arrays],
    theirs: Sequence[Arrays],
    metric: str,
    their_metric: str | None = None,
    same_runs: bool = False,
    samples: int = 2000,
) -> Interval:
    """How much better ours are in a metric, by paired bootstrap; theirs may be scored in another metric.

    Draws queries or images, the same for both sides, then the seeds of each side; with `same_runs` the seeds are drawn
    together. Raises CapbenchError as `queries` and `counts` do.
    """
    entry = registry.metric(metric)
    if entry.resampled in ("corpus", "jointly"):
        both = counts(ours, metric), counts(theirs, their_metric or metric)
        return paired_bootstrap_corpus(*both, entry.compute, samples, same_runs=same_runs)
    (a, groups), (b, _) = queries(ours, metric), queries(theirs, their_metric or metric)
    if same_runs:
        a, b = a - b, np.zeros_like(b)
    return paired_bootstrap(*((b, a) if entry.lower_is_better else (a, b)), samples, groups=groups)
