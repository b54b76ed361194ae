"""Verdicts at their borders, claims on made-up records, and the reported numbers of VSE++."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from capbench.base.errors import CapbenchError
from capbench.data import datasets
from capbench.data.datasets import SOURCES
from capbench.evidence.records import save_result
from capbench.evidence.results import Results, data_name
from capbench.evidence.verdicts import (
    BEST_TO_WORST,
    RULES,
    Reported,
    Verdict,
    beats,
    difference,
    read_reported,
    verdict,
)
from capbench.leaderboard.board import board
from capbench.metrics.registry import metric
from capbench.metrics.significance import Interval
from capbench.runs.paper import paper
from reproductions.vsepp.claims import larger_sets_help
from tests.made_up import made_up_record

TABLE = Path(__file__).parent.parent / "reproductions" / "vsepp" / "reported.csv"


def number(value: str = "40.0", metric: str = "image_to_caption_r1", **changes) -> Reported:
    row = {
        "table": "Table 3, row 3.11", "dataset": "flickr30k", "protocol": "whole", "split": "test",
        "system": "VSE++", "preset": "vsepp", "encoder": "vgg19", "crop": "RC", "train_split": "train",
        "setting": "", "metric": metric, "value": value, "unit": "%", "source": "the paper",
        "confidence": "two-sources", "role": "target", "compare_with": (),
    }  # fmt: skip
    return Reported(**(row | changes))


def run(folder: Path, ranks: np.ndarray | None = None, **changes) -> None:
    changes = {"dataset": "flickr30k", "encoder": "vgg19", **changes}
    arrays = {}
    if ranks is not None:
        arrays = {"image_to_caption": ranks}
        changes.setdefault("metrics", {"image_to_caption_r1": 100.0 * float((ranks < 1).mean())})
    save_result(made_up_record(**changes), arrays, folder)


def judge(reported: Reported, results: Results, preset: str = "vsepp") -> Verdict:
    """The verdict on the runs of one preset of VSE++, were this the only number of its table."""
    alone = replace(paper("vsepp"))
    vars(alone)["reported"] = [reported]
    (match,) = [match for match in board(alone, results).matches if match.preset in (preset, "")]
    return match.verdict


def hits(count: int, total: int = 200) -> np.ndarray:
    return np.where(np.arange(total) < count, 0, 5)


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ([42.0, 42.1, 42.2], "exceeds"),
        ([40.0, 41.0, 42.0], "reproduced"),
        ([39.0, 39.8, 40.6], "reproduced"),
        ([39.0, 39.1, 39.2], "close"),
        ([37.5, 37.6, 37.7], "close"),
        ([37.4, 37.5, 37.6], "short"),
        ([30.0, 36.0, 42.0], "short"),
    ],
)
def test_verdicts_on_three_seeds(values, status):
    found = verdict(number(), dict(enumerate(values)))
    assert found.status == status
    assert found.test == "t over 3 seeds"
    assert found.advantage == pytest.approx(sum(values) / 3 - 40.0)


@pytest.mark.parametrize(
    ("values", "status"),
    [([8.0, 8.0], "exceeds"), ([10.0, 10.0], "reproduced"), ([11.0, 11.0], "close"), ([11.5, 11.5], "short")],
)
def test_a_lower_rank_is_better(values, status):
    found = verdict(number("10", "image_to_caption_median_rank", unit="rank"), dict(enumerate(values)))
    assert found.status == status
    assert found.advantage == pytest.approx(10.0 - values[0])


@pytest.mark.parametrize(
    ("values", "status"),
    [([9.0, 9.0], "exceeds"), ([10.0, 10.0], "reproduced"), ([10.3, 10.3], "close"), ([10.31, 10.31], "short")],
)
def test_a_perplexity_may_be_three_per_cent_worse(values, status):
    assert verdict(number("10", "perplexity"), dict(enumerate(values))).status == status


def test_the_rules_cover_every_case_in_the_order_that_the_words_say():
    assert [rule.status for rule in RULES] == ["exceeds", "short", "reproduced", "close"]
    assert sorted(BEST_TO_WORST) == sorted(rule.status for rule in RULES)
    assert "whether or not the interval holds" in RULES[1].words


def test_one_seed_without_an_interval_never_exceeds():
    assert verdict(number(), {0: 60.0}).status == "reproduced"
    assert verdict(number(), {0: 39.0}).status == "close"
    assert verdict(number(), {0: 39.0}).test == "1 seed, no interval"


def test_one_seed_may_bring_its_own_interval():
    interval = Interval(39.0, 37.0, 41.0, "bootstrap over 1,000 queries, 1 seed")
    found = verdict(number(), {0: 39.0}, interval)
    assert (found.status, found.test) == ("reproduced", "bootstrap over 1,000 queries, 1 seed")


def test_no_run_is_pending_and_another_protocol_is_not_comparable(tmp_path):
    assert verdict(number(), {}).status == "pending"
    assert judge(number(), Results.load(tmp_path), "vsepp").reason == "no run of vsepp on flickr30k"
    run(tmp_path, hits(80), protocol="1K")
    found = judge(number(), Results.load(tmp_path), "vsepp")
    assert (found.status, found.reason) == ("not comparable", "our runs are under 1K test")
    assert judge(number(dataset="coco"), Results.load(tmp_path), "vsepp").status == "pending"


def test_a_metric_that_we_do_not_have_is_not_comparable(tmp_path):
    run(tmp_path, hits(80))
    found = judge(number(metric="image_to_caption_r5"), Results.load(tmp_path), "vsepp")
    assert (found.status, found.reason) == ("not comparable", "the records have no image_to_caption_r5")


def test_one_run_is_judged_by_the_bootstrap_and_three_by_their_seeds(tmp_path):
    run(tmp_path, hits(80))
    found = judge(number(), Results.load(tmp_path), "vsepp")
    assert (found.status, found.test) == ("reproduced", "bootstrap over 200 queries, 1 seed")
    assert found.mean == 40.0
    run(tmp_path, hits(82), seed=1)
    run(tmp_path, hits(84), seed=2)
    assert judge(number(), Results.load(tmp_path), "vsepp").test == "t over 3 seeds"


def test_a_number_for_context_is_never_judged(tmp_path):
    run(tmp_path, hits(80))
    context = number(role="context", preset="")
    assert judge(context, Results.load(tmp_path), "vsepp").status == "not comparable"


def test_the_latest_of_equal_runs_counts_and_the_others_are_superseded(tmp_path):
    run(tmp_path, hits(10), started="2024-05-02T00:00:00Z")
    run(tmp_path, hits(80), started="2024-05-03T00:00:00Z")
    run(tmp_path, hits(20), started="2024-05-01T00:00:00Z")
    results = Results.load(tmp_path)
    assert results.values("image_to_caption_r1") == {0: 40.0}
    assert results.superseded == 2


UNPUBLISHED = [
    {"published": False},
    {"notes": ["15 images, 75 captions (5 each); not the published split (test: 15, published 1,000)"]},
    {"dataset": "flickr8k"},  # whose fingerprint is known
]


@pytest.mark.parametrize("changes", UNPUBLISHED)
def test_runs_on_other_data_under_the_same_name_are_neither_judged_nor_take_the_place_of_a_seed(tmp_path, changes):
    published = {"flickr8k": SOURCES["flickr8k"].fingerprint}
    name = changes.get("dataset", "flickr30k")
    for seed in range(3):
        run(tmp_path, hits(80 + seed), seed=seed, dataset=name, dataset_fingerprint=published.get(name, "d"))
    before = judge(number(dataset=name), Results.load(tmp_path), "vsepp")
    assert (before.status, before.mean) == ("reproduced", 40.5)
    run(tmp_path, hits(9, 15), started="2024-06-01T12:00:00Z", **{"dataset_fingerprint": "mine", **changes})
    results = Results.load(tmp_path)
    assert judge(number(dataset=name), results, "vsepp") == before
    assert results.superseded == 0
    assert len(results.canonical.records) == 3
    assert judge(number(dataset=name), results.select(dataset_fingerprint="mine"), "vsepp").status == "pending"
    with pytest.raises(CapbenchError, match="2 settings cannot be pooled"):
        results.values("image_to_caption_r1")


def test_other_data_are_named_with_their_size_and_fingerprint(monkeypatch):
    monkeypatch.setattr(datasets, "SCENES_FINGERPRINT", "5" * 64)

    def name(**changes) -> str:
        return data_name(
            made_up_record(**{"dataset_fingerprint": "0123456789abcdef", "published": False, "images": 15, **changes})
        )

    assert name() == "flickr8k, not the published split: 15 test images, data set 0123456789ab"
    assert name(dataset_fingerprint=SOURCES["flickr8k"].fingerprint) == "flickr8k"
    assert name(dataset="coco", published=True) == "coco"
    assert name(dataset="coco", published=None) == "coco"
    assert name(dataset="scenes", images=None) == "scenes, not as they are drawn today: data set 0123456789ab"
    assert name(dataset="scenes", dataset_fingerprint="5" * 64) == "scenes"
    assert name(dataset_fingerprint="", images=None).endswith("data set unknown")


def test_records_of_two_encoders_are_not_pooled(tmp_path):
    run(tmp_path, hits(80))
    run(tmp_path, hits(90), encoder="resnet152", seed=1)
    with pytest.raises(CapbenchError, match="2 settings cannot be pooled"):
        Results.load(tmp_path).values("image_to_caption_r1")
    assert Results.load(tmp_path).settings("encoder") == [("resnet152",), ("vgg19",)]
    with pytest.raises(CapbenchError, match="no field 'colour'"):
        Results.load(tmp_path).select(colour="red")


@pytest.mark.parametrize(("ours", "status"), [(120, "holds"), (40, "fails"), (81, "undecided")])
def test_a_claim_of_difference_is_decided_by_its_interval(tmp_path, ours, status):
    random = np.random.default_rng(0)
    for seed in range(3):
        run(tmp_path, random.permutation(hits(80)), preset="vse0", seed=seed)
        run(tmp_path, random.permutation(hits(ours)), seed=seed)
    found = difference(Results.load(tmp_path), "vsepp", "vse0", "image_to_caption_r1")
    assert found.status == status
    assert found.interval is not None
    assert found.interval.mean == pytest.approx((ours - 80) / 2)
    assert "200 queries and 3 against 3 seeds" in found.detail


def test_a_claim_is_tested_with_the_encoder_of_most_seeds_then_the_default_one_then_by_name(tmp_path):
    default = "timm/tf_efficientnet_lite2"

    def tested(*encoders: tuple[str, int]) -> str:
        folder = tmp_path / "-".join(f"{name}{seeds}".replace("/", "_") for name, seeds in encoders)
        for name, seeds in encoders:
            for seed in range(seeds):
                run(folder, encoder=name, seed=seed)
            for seed in range(3):
                run(folder, encoder=name, preset="vse0", seed=seed)
        found = Results.load(folder).first_with("vsepp", "vse0")
        assert found is not None
        return found.records[0].encoder

    assert tested(("alexnet", 1), ("vgg19", 2)) == "vgg19"
    assert tested(("alexnet", 2), (default, 2)) == default
    assert tested(("alexnet", 3), (default, 2)) == "alexnet"
    assert tested(("vgg19", 1), ("alexnet", 1)) == "alexnet"


def test_two_views_or_splits_of_one_preset_leave_a_claim_decided(tmp_path):
    test = beats("vsepp", "vse0", "image_to_caption_r1")
    run(tmp_path, hits(10), view="10C")
    run(tmp_path, hits(10), split="val")
    run(tmp_path, hits(80), preset="vse0")
    run(tmp_path, hits(150))
    assert test(Results.load(tmp_path)).status == "holds"
    run(tmp_path, hits(5), preset="sum", view="RC")
    across = beats("vsepp", "sum", "image_to_caption_r1")(Results.load(tmp_path))
    assert (across.status, across.statement) == ("holds", "on flickr30k with vgg19: vsepp 5.0, sum 2.5")


@pytest.mark.parametrize(
    ("right", "qualifier"),
    [((20, 30, 40, 50, 60), ""), ((20, 30, 90, 50, 60), "at its ends, not monotone: highest at 16")],
)
def test_the_set_of_negatives_is_tested_at_its_ends_and_a_course_that_does_not_rise_qualifies_it(
    tmp_path, right, qualifier
):
    names = [*(f"vsepp-negatives-{size}-ours" for size in (1, 4, 16, 64)), "vsepp-ours"]
    for name, count in zip(names, right, strict=True):
        run(tmp_path, hits(count), preset=name, dataset="scenes", encoder="scenes")
    outcome = larger_sets_help(Results.load(tmp_path))
    assert (outcome.status, outcome.qualifier) == ("holds", qualifier)
    assert outcome.detail.endswith(f"4: 15.0, 16: {right[2] / 2:.1f}, 64: 25.0, the batch: 30.0")


def test_in_a_mean_rank_the_smaller_one_wins(tmp_path):
    run(tmp_path, hits(80), preset="vse0")
    run(tmp_path, hits(150))
    assert difference(Results.load(tmp_path), "vsepp", "vse0", "image_to_caption_mean_rank").status == "holds"


def test_a_claim_without_runs_is_pending_and_one_across_data_is_refused(tmp_path):
    run(tmp_path, hits(80))
    found = difference(Results.load(tmp_path), "vsepp", "vse0", "image_to_caption_r1")
    assert (found.status, found.statement) == ("pending", "no run of vse0")
    run(tmp_path, hits(80), preset="vse0", dataset_fingerprint="another")
    with pytest.raises(CapbenchError, match="same data and encoder"):
        difference(Results.load(tmp_path), "vsepp", "vse0", "image_to_caption_r1")


def test_a_median_is_no_mean_over_queries():
    with pytest.raises(CapbenchError, match="not a mean over queries"):
        metric("image_to_caption_median_rank").per_query({"image_to_caption": hits(3)})
    with pytest.raises(CapbenchError, match="no array 'caption_to_image'"):
        metric("caption_to_image_r1").per_query({"image_to_caption": hits(3)})
    ranks = {"image_to_caption": np.array([0, 9, 10])}
    assert metric("image_to_caption_r10").per_query(ranks).tolist() == [100, 100, 0]
    assert metric("image_to_caption_mean_rank").per_query(ranks).tolist() == [1, 10, 11]


def test_the_table_of_vsepp_keeps_the_digits_of_the_paper():
    rows = read_reported(TABLE)
    assert len(rows) == 350

    def values(table: str, preset: str) -> list[str]:
        return [row.value for row in rows if row.table.startswith(table) and row.preset == preset]

    fine_tuned = ["64.6", "90.0", "95.7", "1.0", "52.0", "84.3", "92.0", "1.0"]
    assert values("Table 1, row 1.11", "vsepp-ft") == fine_tuned
    assert values("Table 3, row 3.13 in v2", "vsepp-RC")[:2] == ["43.7", "71.9"]
    presets = set(paper("vsepp").presets("flickr8k"))
    assert {name for row in rows for name in row.presets} <= presets
    assert {(row.dataset, row.protocol) for row in rows} == {
        ("coco", "5-fold 1K"), ("coco", "5K"), ("coco-norestval", "1K"),
        ("coco-norestval", "5-fold 1K"), ("flickr30k", "whole"), ("flickr8k", "whole"),
    }  # fmt: skip
    assert {row.confidence for row in rows} == {"two-sources", "one-source", "memory"}


def test_the_author_s_rerun_is_no_target_and_flickr8k_has_baselines():
    rows = read_reported(TABLE)
    rerun = [row for row in rows if row.table.startswith("Author re-run")]
    assert len(rerun) == 8
    assert {row.presets for row in rerun} == {()}
    kiros = [row for row in rows if row.dataset == "flickr8k" and row.encoder == "vgg19"]
    printed = ["18.0", "40.9", "55.0", "8", "12.5", "37.0", "51.5", "10"]
    assert [row.value for row in kiros][:8] == printed
    assert {row.presets for row in kiros} == {("vse0", "vsepp", "vse0-ours", "vsepp-ours")}


def test_no_number_stands_twice_in_one_row_of_a_table():
    rows = read_reported(TABLE)
    keys = [(row.table, row.system, row.encoder, row.metric) for row in rows]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("43.7", "a lot"), r"row \d+: value 'a lot'"),
        (("target", "goal"), r"row \d+: role 'goal'"),
        (("table,dataset", "table,data"), "the columns must be"),
        (("Table 1", '"Table 1'), "cannot read"),
    ],
)
def test_a_broken_table_is_named_with_its_row(tmp_path, change, message):
    path = tmp_path / "reported.csv"
    path.write_text(TABLE.read_text().replace(*change))
    with pytest.raises(CapbenchError, match=message):
        read_reported(path)
    with pytest.raises(CapbenchError, match="cannot read"):
        read_reported(tmp_path / "none.csv")
