"""How sure a number is: intervals over seeds, over queries, and over both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from capbench.base.errors import CapbenchError

# The 97.5 % point of Student's t for 1 to 30 degrees of freedom.
_T975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
_Z975 = 1.959964
_DRAWS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Interval:
    """A mean, its 95 % interval, and the words for how it was found ("t over 3 seeds")."""

    mean: float
    low: float
    high: float
    test: str


def seed_interval(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean over seeds. Raises CapbenchError below two seeds, or for NaN."""
    if len(values) < 2:
        raise CapbenchError(f"an interval over seeds needs two or more, not {len(values)}: run another seed")
    array = _finite(np.asarray(values, dtype=np.float64))
    mean = float(array.mean())
    half = _t975(len(array) - 1) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return Interval(mean, mean - half, mean + half, f"t over {len(array)} seeds")


def bootstrap(
    values: Float[np.ndarray, " query"],
    samples: int = 2000,
    seed: int = 0,
    groups: Int[np.ndarray, " query"] | None = None,
) -> Interval:
    """Percentile interval of the mean over the queries of one run, by resampling queries.

    `groups` (the image of each caption, say) are drawn whole, for queries of one image are not independent.
    It says nothing about other seeds. Raises CapbenchError when there is nothing to draw from, or for NaN.
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
    """Percentile interval of mean(a) - mean(b), drawing queries (the same for both), then the seeds of each.

    The value of a query is anything whose mean is the metric, such as a hit at 1. `groups` are drawn whole.
    With few seeds their part of the interval is too narrow. Source: Davison and Hinkley 1997, section 3.8.
    Raises CapbenchError when there is nothing to draw from, or for NaN.
    """
    random = np.random.default_rng(seed)
    stacked = np.concatenate([a, b])
    draws = _resampled(stacked, groups, samples, random)
    means = []
    for part in (draws[: len(a)], draws[len(a) :]):
        chosen = random.integers(0, len(part), (len(part), samples))
        means.append(np.take_along_axis(part, chosen, axis=0).mean(0))
    low, high = np.quantile(means[0] - means[1], (0.025, 0.975))
    count = a.shape[1] if groups is None else len(np.unique(groups))
    unit = "queries" if groups is None else "groups of queries"
    test = f"paired bootstrap over {count:,} {unit} and {len(a)} against {len(b)} seeds"
    return Interval(float(a.mean() - b.mean()), float(low), float(high), test)


def _resampled(values: np.ndarray, groups: np.ndarray | None, samples: int, random: np.random.Generator) -> np.ndarray:
    """Means [seed, sample] over queries drawn with replacement, the same draw for every seed."""
    _finite(values)
    if values.size == 0:
        raise CapbenchError("there is nothing to draw from: no query, or no seed")
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
        raise CapbenchError("an interval was asked for values that hold NaN or infinity")
    return values


def _t975(freedom: int) -> float:
    """The 97.5 % point of Student's t: a table, then an expansion (Abramowitz and Stegun 26.7.5)."""
    if freedom <= len(_T975):
        return _T975[freedom - 1]
    z = _Z975
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
