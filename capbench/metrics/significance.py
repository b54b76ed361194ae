"""How sure a number is: intervals over seeds, over queries, and over both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t

from capbench.base.errors import CapbenchError

_DRAWS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float
    test: str  # how the interval was computed, in words: "t over 3 seeds"


def seed_interval(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean over seeds. Raises CapbenchError below two seeds, or for NaN.

    >>> interval = seed_interval([1.0, 2.0, 3.0])
    >>> round(interval.low, 2), round(interval.high, 2), interval.test
    (-0.48, 4.48, 't over 3 seeds')
    """
    if len(values) < 2:
        raise CapbenchError(f"an interval over seeds needs two or more, not {len(values)}: run another seed")
    array = _finite(np.asarray(values, dtype=np.float64))
    mean = float(array.mean())
    half = float(t.ppf(0.975, len(array) - 1)) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return Interval(mean, mean - half, mean + half, f"t over {len(array)} seeds")


def bootstrap(
    values: Float[np.ndarray, " query"],
    samples: int = 2000,
    seed: int = 0,
    groups: Int[np.ndarray, " query"] | None = None,
) -> Interval:
    """Percentile interval of the mean over the queries of one run, by resampling queries.

    `groups` (each caption's image) are drawn whole, because queries of one image depend on each other. The interval
    says nothing about other seeds. Raises CapbenchError without any query, or for NaN.
    """
    means = _resampled(values[None], groups, samples, np.random.default_rng(seed))
    low, high = np.quantile(means[0], (0.025, 0.975))
    unit = "queries" if groups is None else "groups of queries"
    count = len(values) if groups is None else len(np.unique(groups))
    return Interval(float(values.mean()), float(low), float(high), f"bootstrap over {count:,} {unit}, 1 seed")


def paired_bootstrap(
    a: Float[np.ndarray, "seed_a query"],
    b: Float[np.ndarray, "seed_b query"],
    samples: int = 2000,
    seed: int = 0,
    groups: Int[np.ndarray, " query"] | None = None,
) -> Interval:
    """Percentile interval of mean(a) - mean(b): draws queries, the same for both sides, then the seeds of each side.

    The mean of a query's values is the metric, as with a hit at 1. `groups` are drawn whole. With few seeds the
    interval understates their spread. Source: Davison and Hinkley 1997, section 3.8.
    Raises CapbenchError without any query or seed, or for NaN.
    """
    random = np.random.default_rng(seed)
    stacked = np.concatenate([a, b])
    draws = _resampled(stacked, groups, samples, random)
    means = []
    for side in (draws[: len(a)], draws[len(a) :]):
        chosen = random.integers(0, len(side), (len(side), samples))
        means.append(np.take_along_axis(side, chosen, axis=0).mean(0))
    low, high = np.quantile(means[0] - means[1], (0.025, 0.975))
    count = a.shape[1] if groups is None else len(np.unique(groups))
    unit = "queries" if groups is None else "groups of queries"
    test = f"paired bootstrap over {count:,} {unit} and {len(a)} against {len(b)} seeds"
    return Interval(float(a.mean() - b.mean()), float(low), float(high), test)


def _resampled(values: np.ndarray, groups: np.ndarray | None, samples: int, random: np.random.Generator) -> np.ndarray:
    """Means [seed, sample] over queries drawn with replacement, the same draw for every seed."""
    _finite(values)
    if values.size == 0:
        raise CapbenchError("nothing to resample: no query, or no seed")
    if groups is None:
        sums, sizes = values.astype(np.float64), np.ones(values.shape[1])
    else:
        _, place = np.unique(groups, return_inverse=True)
        sizes = np.bincount(place).astype(np.float64)
        sums = np.stack([np.bincount(place, weights=row) for row in values])
    count = len(sizes)
    means = np.empty((len(values), samples))
    step = max(1, _DRAWS_AT_ONCE // count)
    for start in range(0, samples, step):
        rows = min(step, samples - start)
        drawn = random.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        means[:, start : start + rows] = (sums @ weights.T) / (weights @ sizes)
    return means


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise CapbenchError("an interval needs finite values, and some are NaN or infinite")
    return values
