"""Agreement with earlier records: what is compared, how far apart the means may lie, and what is said."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import t

from capbench import leaderboard
from capbench.evidence.records import Result
from capbench.evidence.results import Results
from capbench.leaderboard.agreement import compare, margin, sentences
from tests.test_leaderboard import fake, record


def run(rsum: float, seed: int = 0, preset: str = "hard", **changes) -> Result:
    return record(preset, seed, **{"metrics": {"rsum": rsum, "image_to_caption_r1": 40.0}, **changes})


THREE = [run(value, seed) for seed, value in enumerate((200.0, 206.0, 212.0))]


def said(new: list[Result], earlier: list[Result]) -> list[str]:
    return list(sentences(compare(new, earlier)))


@pytest.mark.parametrize("here", [1, 3])
def test_the_margin_is_half_of_the_prediction_interval(here):
    values = [200.0, 206.0, 212.0, 190.0]
    expected = t.ppf(0.975, 3) * np.std(values, ddof=1) * math.sqrt(1 / here + 1 / 4)
    assert margin("rsum", [0.0] * here, values) == pytest.approx(expected, rel=1e-4)


def test_the_margin_is_never_less_than_a_verdict_s_tolerance():
    assert margin("image_to_caption_r1", [1.0], [40.0, 40.0, 40.1]) == 2.4
    assert margin("bleu4", [1.0], [40.0]) == 2.4
    assert margin("image_to_caption_median_rank", [1.0], [9.0]) == 1.0
    assert margin("perplexity", [1.0], [9.0, 9.0]) == pytest.approx(0.03 * 9)
    assert margin("rsum", [1.0], [206.0]) == 4.8


def test_a_mean_within_the_margin_agrees():
    half = t.ppf(0.975, 2) * 6 * math.sqrt(1 + 1 / 3)
    assert said([run(207.1)], THREE) == [
        f"hard: agrees with the committed records (rsum 206.0 ± {half:.1f}, here 207.1)"
    ]
    assert compare([run(206 + half - 0.1)], THREE)[0].status == "agrees"
    assert compare([run(206 + half + 0.1)], THREE)[0].status == "differs"
    assert compare([run(206 + half - 0.1, seed) for seed in range(3)], THREE)[0].status == "differs"


def test_a_mean_beyond_it_differs_whichever_way():
    (line,) = said([run(44.1)], THREE)
    assert line == "hard: differs from the committed records: rsum 206.0 ± 29.8 there, 44.1 here (seed 0)"
    (line,) = said([run(300.0, seed) for seed in (2, 1)], THREE)
    assert line.endswith("300.0 here (seeds 1, 2)")


def test_one_committed_seed_gives_the_tolerance_alone():
    assert said([run(210.0)], [run(206.0, seed=5)]) == [
        "hard: agrees with the committed records (rsum 206.0 ± 4.8, here 210.0)"
    ]
    assert compare([run(211.0)], [run(206.0)])[0].status == "differs"


def test_of_a_seed_run_twice_the_latest_record_counts():
    earlier = [run(206.0), run(100.0, started="2023-01-01T00:00:00+00:00")]
    assert compare([run(206.0)], earlier)[0].there == 206.0


def test_a_recipe_that_has_changed_is_not_compared():
    other = run(100.0, recipe=record().recipe | {"margin": 0.1})
    assert said([run(206.0)], [other]) == [
        "hard: not compared with the committed records: the recipe has changed since"
    ]
    assert compare([run(206.0)], [other, run(205.0, seed=1)])[0].there == 205.0
    assert compare([run(206.0)], [run(205.0, recipe={})])[0].status == "changed"


def test_a_field_that_came_after_the_record_is_no_change():
    recipe = {name: value for name, value in record().recipe.items() if name != "min_count"}
    assert compare([run(206.0)], [run(206.0, recipe=recipe)])[0].status == "agrees"


@pytest.mark.parametrize(
    "other",
    [
        {"preset": "sum"}, {"dataset": "coco"}, {"dataset_fingerprint": "another"}, {"encoder": "vgg19"},
        {"protocol": "1K"}, {"view": "10C"}, {"metrics": {"cider": 3.0}},
    ],
)  # fmt: skip
def test_a_record_of_another_setting_is_nothing_to_compare_with(other):
    assert said([run(206.0)], [run(206.0, **other)]) == ["no committed record to compare with"]


def test_what_has_nothing_to_compare_with_is_said_once():
    new = [run(206.0), run(206.0, preset="sum"), run(206.0, preset="sum", encoder="vgg19")]
    assert said(new, []) == ["no committed record to compare with"]
    assert said(new, [run(206.0)]) == [
        "hard: agrees with the committed records (rsum 206.0 ± 4.8, here 206.0)",
        "no committed record to compare with: sum, mobilenet_v2; sum, vgg19",
    ]


@pytest.mark.parametrize(
    ("metrics", "head"),
    [
        ({"bleu4": 20.0, "rsum": 200.0, "perplexity": 9.0}, "BLEU-4 20.0 ± 2.4"),
        ({"perplexity": 9.0, "pointing": 30.0, "log_likelihood": -2.0}, "perplexity 9.00 ± 0.27"),
        ({"pointing": 30.0}, "pointing 30.0 ± 2.4"),
    ],
)
def test_the_metric_is_the_one_that_a_reader_looks_at_first(metrics, head):
    (line,) = said([run(0, metrics=metrics)], [run(0, metrics=metrics)])
    assert head in line


def test_a_metric_that_one_side_lacks_is_passed_over():
    (line,) = said([run(0, metrics={"bleu4": 20.0, "rsum": 200.0})], [run(200.0)])
    assert "rsum 200.0" in line


def test_a_strange_name_stays_on_its_line():
    (line,) = said([run(206.0, preset="a\nb\x1b[31m")], [run(206.0, preset="a\nb\x1b[31m")])
    assert line.startswith("a b\ufffd[31m: agrees")


def test_a_command_ends_with_its_own_runs_then_the_others_apart_and_whether_they_agree(tmp_path):
    committed = Results(tmp_path, (run(206.0, 1), run(206.0, 1, preset="sum")))
    local = [
        run(206.0, file="new-1.json"),
        run(100.0, preset="sum", file="new-2.json"),
        run(50.0, preset="left|alone", file="new-3.json"),
        run(151.0, seed=9, file="older.json"),
    ]
    made = ["new-1.json", "new-2.json", "new-3.json"]
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(*leaderboard.closing(fake(tmp_path / "p"), committed, Results(tmp_path, tuple(local)), made))
    shown = console.export_text()
    places = [shown.index(words) for words in ("Runs of this", "Committed", "Earlier records")]
    assert places == sorted(places)
    own, theirs, older = (shown[a:b] for a, b in zip(places, [*places[1:], None], strict=True))
    words = {row[0]: row[1] for row in map(str.split, own.splitlines()) if len(row) > 1}
    assert words["preset"] == "committed"
    assert (words["hard"], words["sum"], words["left|alone"]) == ("agrees", "differs", "–")
    assert "100.0" not in theirs
    assert theirs.count("206.0") == 2
    assert "151.0" in older
    assert "hard: agrees with the committed records (rsum 206.0 ± 4.8, here 206.0)" in shown
