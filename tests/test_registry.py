"""The registry of metrics: it knows every metric of the committed records, and what each is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from capbench.evidence import resampling
from capbench.evidence.records import load_arrays, load_results
from capbench.metrics import registry

RESULTS = Path(__file__).resolve().parents[1] / "leaderboards" / "results"
RECORDS = load_results(RESULTS)


def test_every_metric_of_the_committed_records_is_known():
    assert {key for record in RECORDS for key in record.metrics} <= set(registry.METRICS)


@pytest.mark.parametrize("key", [key for key, entry in registry.METRICS.items() if entry.resampled != "no"])
def test_a_metric_is_what_its_array_says(key):
    entry = registry.metric(key)
    wanted = entry.array or "image_to_caption"  # a sum of recalls is made of the arrays of all of them
    record = next((r for r in RECORDS if key in r.metrics and wanted in load_arrays(r, RESULTS)), None)
    if record is None:  # spice needs models that few machines have; others may be newer than the records
        pytest.skip(f"no committed record has {key} and its array")
    arrays = load_arrays(record, RESULTS)
    if entry.resampled == "queries":
        value = entry.per_query(arrays).mean()
    else:
        value = entry.compute(resampling.counts([arrays], key)[0].sum(0))
    assert float(value) == pytest.approx(record.metrics[key], abs=1e-6)


def test_the_image_of_a_query_is_named_where_queries_share_images():
    named = {entry.array: entry.image_of_query for entry in registry.METRICS.values() if entry.image_of_query}
    assert named == {
        "caption_to_image": "image_of_caption",
        "pointing": "image_of_phrase",
        "pointing_chance": "image_of_phrase",
        **{f"eccv_caption_to_image_{m}": "eccv_image_of_caption" for m in ("r1", "r_precision", "map_at_r")},
        **{f"cxc_caption_to_image_{m}": "cxc_image_of_caption" for m in ("r1", "r5", "r10", "r_precision", "map_at_r")},
    }


def test_ranks_perplexities_and_cross_entropies_are_better_when_low():
    low = {key for key, entry in registry.METRICS.items() if entry.lower_is_better}
    ranks = {f"{way}_{kind}_rank" for way in ("image_to_caption", "caption_to_image") for kind in ("median", "mean")}
    assert low == {*ranks, "perplexity", "article_cross_entropy"}


@pytest.mark.parametrize(
    ("key", "reference", "allowed"),
    [
        ("image_to_caption_r1", 50.0, 2.4),
        ("caption_to_image_median_rank", 9.0, 1.0),
        ("rsum", 400.0, 4.8),
        ("perplexity", 20.0, 0.6),
        ("article_cross_entropy", 3.0, 0.09),
        ("bleu4", 20.0, 2.4),
    ],
)
def test_the_tolerance_is_in_the_metric_s_own_unit(key, reference, allowed):
    assert registry.metric(key).allowed(reference) == pytest.approx(allowed)
