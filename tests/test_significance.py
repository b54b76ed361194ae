"""Intervals against values known by heart, and against what they promise: their coverage."""

from __future__ import annotations

import numpy as np
import pytest

from capbench.base.errors import CapbenchError
from capbench.metrics.significance import bootstrap, paired_bootstrap, seed_interval


def test_the_t_interval_of_three_seeds_is_the_textbook_one():
    interval = seed_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.high - 2.0 == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert 2.0 - interval.low == pytest.approx(interval.high - 2.0)
    assert interval.test == "t over 3 seeds"


@pytest.mark.parametrize(("count", "quantile"), [(2, 12.7062), (31, 2.0423), (32, 2.0395), (121, 1.9799)])
def test_the_quantile_of_t_agrees_with_the_tables(count, quantile):
    values = np.zeros(count)
    values[0] = 1.0
    interval = seed_interval(list(values))
    standard_error = values.std(ddof=1) / count**0.5
    assert (interval.high - interval.mean) / standard_error == pytest.approx(quantile, abs=2e-4)


def test_one_seed_has_no_interval_over_seeds():
    with pytest.raises(CapbenchError, match="run another seed"):
        seed_interval([3.0])


def test_nan_and_nothing_are_refused():
    with pytest.raises(CapbenchError, match="NaN"):
        seed_interval([1.0, float("nan")])
    with pytest.raises(CapbenchError, match="NaN"):
        bootstrap(np.array([1.0, np.nan]))
    with pytest.raises(CapbenchError, match="nothing"):
        paired_bootstrap(np.zeros((2, 0)), np.zeros((2, 0)))


def test_the_bootstrap_over_queries_has_the_width_of_the_binomial():
    hits = (np.arange(1000) < 300).astype(np.float64)
    interval = bootstrap(hits, samples=4000)
    assert interval.mean == pytest.approx(0.3)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * (0.3 * 0.7 / 1000) ** 0.5, rel=0.06)
    assert interval.test == "bootstrap over 1,000 queries, 1 seed"


def test_queries_of_one_group_are_drawn_together():
    hits = np.repeat((np.arange(200) < 60).astype(np.float64), 5)
    together = bootstrap(hits, groups=np.repeat(np.arange(200), 5))
    apart = bootstrap(hits)
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(5**0.5, rel=0.15)
    assert "200 groups" in together.test


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).random((3, 50))
    assert paired_bootstrap(values, values + 0.1) == paired_bootstrap(values, values + 0.1)
    assert paired_bootstrap(values, values + 0.1, seed=1) != paired_bootstrap(values, values + 0.1)


def test_the_order_of_the_queries_pairs_the_two_systems():
    random = np.random.default_rng(0)
    easy = random.random((1, 500)) * 10
    paired = paired_bootstrap(easy + 0.2 + 0.1 * random.standard_normal((1, 500)), easy)
    unpaired = paired_bootstrap(easy + 0.2, random.permutation(easy.ravel())[None])
    assert paired.low > 0.15
    assert unpaired.low < 0


def test_seeds_that_disagree_widen_the_interval():
    random = np.random.default_rng(0)
    base = random.random((3, 400))
    steady = paired_bootstrap(base + 0.05, base)
    shaky = paired_bootstrap(base + np.array([[-0.3], [0.05], [0.4]]), base)
    assert steady.low > 0 > shaky.low
    assert shaky.high > steady.high


def test_different_numbers_of_seeds_can_be_compared():
    interval = paired_bootstrap(np.ones((3, 20)), np.zeros((2, 20)))
    assert (interval.mean, interval.low, interval.high) == (1.0, 1.0, 1.0)
    assert interval.test == "paired bootstrap over 20 queries and 3 against 2 seeds"


def test_about_95_in_100_intervals_hold_the_truth():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        interval = bootstrap(random.random(100), samples=400)
        held += interval.low <= 0.5 <= interval.high
    assert held >= 180
