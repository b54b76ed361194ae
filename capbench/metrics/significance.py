"""How sure a number is: intervals over seeds, over queries, and over both."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t

from capbench.base.errors import CapbenchError

_DRAWS_AT_ONCE = 2**22
Groups = Int[np.ndarray, " query"] | None


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float
    test: str  # how the interval was computed, in words: "t over 3 seeds"
    p: float | None = None  # of a difference, that there is none; see `two_sided_p`


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
    values: Float[np.ndarray, " query"], samples: int = 2000, seed: int = 0, groups: Groups = None
) -> Interval:
    """Percentile interval of the mean over the queries of one run, by resampling queries.

    `groups` (each caption's image) are drawn whole, because queries of one image depend on each other. The interval
    says nothing about other seeds. Raises CapbenchError without any query, or for NaN.
    """
    means, _ = _resampled(values[None], groups, samples, seed)
    return percentiles(float(values.mean()), means[0], f"bootstrap over {_drawn(values, groups)}, 1 seed")


def paired_bootstrap(
    a: Float[np.ndarray, "seed_a query"], b: Float[np.ndarray, "seed_b query"], samples: int = 2000, seed: int = 0,
    groups: Groups = None,
) -> Interval:  # fmt: skip
    """Percentile interval of mean(a) - mean(b): draws queries, the same for both sides, then the seeds of each side.

    The mean of a query's values is the metric, as with a hit at 1. `groups` are drawn whole. With few seeds the
    interval understates their spread. Its p is that of `two_sided_p`. Source: Davison and Hinkley 1997, section 3.8.
    Raises CapbenchError without any query or seed, or for NaN.
    """
    draws, random = _resampled(np.concatenate([a, b]), groups, samples, seed)
    test = f"paired bootstrap over {_drawn(a, groups)} and {len(a)} against {len(b)} seeds"
    return difference_percentiles(float(a.mean() - b.mean()), seeds_drawn(draws, len(a), random), test)


def difference_percentiles(mean: float, draws: Float[np.ndarray, " sample"], test: str) -> Interval:
    """`percentiles` of a difference, with its p."""
    return replace(percentiles(mean, draws, test), p=two_sided_p(draws))


def two_sided_p(draws: Float[np.ndarray, " sample"]) -> float:
    """The p-value of "there is no difference", from bootstrap draws of the difference, by inverting the interval.

    It is the least level whose percentile interval leaves out 0: twice the smaller share of draws on one side of 0,
    which itself counts on both. A draw is added to each side, so that no p is 0; a difference below 1e-9 is 0.
    Source: Davison and Hinkley 1997, section 4.2.

    >>> import numpy as np
    >>> two_sided_p(np.array([-1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]))
    0.4
    """
    smaller = min(int((draws <= 1e-9).sum()), int((draws >= -1e-9).sum()))
    return min(1.0, 2 * (1 + smaller) / (1 + len(draws)))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for several tests by Holm's step-down rule, in the same order.

    The chance of any false alarm among them stays below the level. Source: Holm 1979, Scandinavian Journal of
    Statistics 6.

    >>> holm([0.03, 0.01, 0.04])
    [0.06, 0.03, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def percentiles(mean: float, draws: Float[np.ndarray, " sample"], test: str) -> Interval:
    """The interval between the 2.5 % and the 97.5 % quantile of the draws."""
    low, high = np.quantile(draws, (0.025, 0.975))
    return Interval(mean, float(low), float(high), test)


def seeds_drawn(
    draws: Float[np.ndarray, "seed sample"], split: int, random: np.random.Generator, same_runs: bool = False
) -> Float[np.ndarray, " sample"]:
    """The mean over the seeds before `split`, minus that over the others, in each sample over seeds drawn anew.

    With `same_runs` the same seeds are drawn on both sides.
    """
    a, b = draws[:split], draws[split:]
    of_a, of_b = random.integers(0, len(a), a.shape), random.integers(0, len(b), b.shape)
    mean_a = np.take_along_axis(a, of_a, axis=0).mean(0)
    mean_b = np.take_along_axis(b, of_a if same_runs else of_b, axis=0).mean(0)
    return np.asarray(mean_a - mean_b)


def _drawn(values: np.ndarray, groups: np.ndarray | None) -> str:
    """What is drawn, in words."""
    return f"{values.shape[-1]:,} queries" if groups is None else f"{len(np.unique(groups)):,} groups of queries"


def _resampled(
    values: np.ndarray, groups: np.ndarray | None, samples: int, seed: int
) -> tuple[np.ndarray, np.random.Generator]:
    """Means [seed, sample] over queries drawn with replacement, the same draw for each seed; the generator after it."""
    _finite(values)
    if values.size == 0:
        raise CapbenchError("nothing to resample: no query, or no seed")
    if groups is None:
        sums, sizes = values.astype(np.float64), np.ones(values.shape[1])
    else:
        _, place = np.unique(groups, return_inverse=True)
        sizes = np.bincount(place).astype(np.float64)
        sums = np.stack([np.bincount(place, weights=row) for row in values])
    means, start = np.empty((len(values), samples)), 0
    random = np.random.default_rng(seed)
    for weights in resamples(_how_often, len(sizes), samples, random):
        means[:, start : start + len(weights)] = (sums @ weights.T) / (weights @ sizes)
        start += len(weights)
    return means, random


Draw = Callable[[int, int, np.random.Generator], Float[np.ndarray, "sample item"]]  # items, samples


def resamples(
    draw: Draw, count: int, samples: int, random: np.random.Generator
) -> Iterator[Float[np.ndarray, "sample item"]]:
    """How often each of `count` items is drawn in each sample, some samples at a time.

    The last four parts (32 MB each) are kept, for many metrics are resampled by the same draws.
    """
    step = max(1, _DRAWS_AT_ONCE // count)
    for start in range(0, samples, step):
        rows, before = min(step, samples - start), json.dumps(random.bit_generator.state)
        weights, after = _drawn_from(draw, count, rows, before)
        random.bit_generator.state = json.loads(after)
        yield weights


@lru_cache(maxsize=4)
def _drawn_from(draw: Draw, count: int, rows: int, state: str) -> tuple[Float[np.ndarray, "sample item"], str]:
    random = np.random.default_rng(0)
    random.bit_generator.state = json.loads(state)
    weights = draw(count, rows, random)
    weights.flags.writeable = False
    return weights, json.dumps(random.bit_generator.state)


def _how_often(count: int, rows: int, random: np.random.Generator) -> Float[np.ndarray, "sample item"]:
    drawn = random.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise CapbenchError("an interval needs finite values, and some are NaN or infinite")
    return values
