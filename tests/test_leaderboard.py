"""The leaderboard: what its pages say, that they say it safely, and that the same records give the same bytes."""

from __future__ import annotations

import csv
import html
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from capbench import leaderboard
from capbench.base.errors import CapbenchError
from capbench.data import datasets
from capbench.data.datasets import SOURCES
from capbench.evidence.records import Epoch, Result, load_results, save_result
from capbench.evidence.results import Results
from capbench.evidence.verdicts import RULES, Claim, Outcome, Reported
from capbench.leaderboard import commands, terminal
from capbench.leaderboard.markdown import code, code_block, escape, plain, table
from capbench.leaderboard.page import page
from capbench.leaderboard.pooled import gather, setting
from capbench.metrics.registry import columns
from capbench.metrics.significance import Interval
from capbench.runs.paper import Paper, papers
from capbench.training.experiment import Recipe, Training
from tests.made_up import made_up_record

ROOT = Path(__file__).resolve().parents[1]
NASTY = "a|b\n<script>alert(1)</script> `c` **d** [e](f) \u2028 $g$ \x00"


FLICKR8K = SOURCES["flickr8k"].fingerprint
TRAINING = Training(epochs=3, batch_size=128, learning_rate=1e-3)


@dataclass(frozen=True, kw_only=True)
class FakeRecipe(Recipe):
    loss: str = "max_of_hinges"
    margin: float = 0.2
    training: Training = TRAINING


PRESETS = {"hard": FakeRecipe(), "sum": FakeRecipe(loss="sum_of_hinges")}


@pytest.fixture(autouse=True)
def scenes_of_today(monkeypatch: pytest.MonkeyPatch) -> str:
    """A fingerprint that stands for the scenes of today, which take seconds to draw."""
    monkeypatch.setattr(datasets, "SCENES_FINGERPRINT", "5" * 64)
    return "5" * 64


def record(preset: str = "hard", seed: int = 0, r1: float = 40.0, **changes) -> Result:
    """A made-up run whose recall grows with the seed's number."""
    recipe = json.loads(json.dumps(asdict(PRESETS.get(preset, FakeRecipe()))))
    scores = [{"rsum": 100.0 + 10 * epoch + seed} for epoch in range(3)]
    entries = [
        Epoch(epoch=epoch, loss=51.2 - epoch - seed, learning_rate=1e-3, seconds=2.0, validation=score)
        for epoch, score in enumerate(scores)
    ]
    told = {
        "paper": "fake", "preset": preset, "seed": seed,
        "metrics": {"image_to_caption_r1": r1, "image_to_caption_median_rank": 3.0},
        "validation": scores[-1], "best_epoch": 2, "curve": entries, "recipe": recipe, "parameters": 1000,
        "dataset_fingerprint": FLICKR8K, "features_fingerprint": "f" * 64, "vocabulary_size": 2541,
        "commit": "0123456789abcdef", "versions": {"torch": "2.15.0"}, "device": "CPU, test", "wall_seconds": 60.0,
        "command": f"capbench run fake --preset {preset} --dataset flickr8k --seed {seed}",
    }  # fmt: skip
    return made_up_record(**{**told, **changes})


def reported(**changes) -> Reported:
    number = Reported(
        "Table 1, row 1.1", "flickr8k", "whole", "test", "Hard (vgg19)", "hard", "vgg19", "1C", "train", "",
        "image_to_caption_r1", "41.5", "%", "the paper", "two-sources", "target", (),
    )  # fmt: skip
    return replace(number, **changes)


def fake(folder: Path, *numbers: Reported, claims: tuple[Claim, ...] = (), name: str = "fake") -> Paper:
    """A paper with two presets whose table holds these numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "reported.csv").open("w", newline="", encoding="utf-8") as file:
        names = [field.name for field in fields(Reported)]
        writer = csv.writer(file)
        writer.writerow(names)
        for number in numbers:
            row = asdict(number) | {"compare_with": " ".join(number.compare_with)}
            writer.writerow([row[name] for name in names])
    return Paper(
        name=name, title="Fake: a paper", citation="Nobody, 2024", folder=folder, presets=lambda dataset: PRESETS,
        headline=("hard",), metric="rsum", experiment=lambda *_: pytest.fail("no run is wanted"),
        model=lambda *_: pytest.fail("no model is wanted"), claims=claims,
    )  # fmt: skip


def saved(folder: Path, *records: Result, arrays: dict[str, np.ndarray] | None = None) -> Results:
    for each in records:
        save_result(each, arrays or {}, folder / "results")
    return Results.load(folder / "results")


def text(paper: Paper, results: Results) -> str:
    return page(leaderboard.board(paper, results), [])


def rows_of(paper: Paper, results: Results) -> list[leaderboard.Row]:
    return list(leaderboard.board(paper, results).rows)


def index(paper: Paper, results: Results) -> str:
    return leaderboard.index.page([leaderboard.board(paper, results)], results)


def section(shown: str, heading: str) -> str:
    """What stands below a heading of the first screen, or is folded below its words."""
    if f"<summary>{heading}</summary>" in shown:
        return shown.split(f"<summary>{heading}</summary>\n", 1)[1].split("</details>", 1)[0]
    return re.split(r"\n## |\n<details>|\n!\[", shown.split(f"## {heading}\n", 1)[1], maxsplit=1)[0]


WHOLE = "flickr8k, test split, protocol whole"
SHORT = "Short numbers, and what moves them"
SCENES = "Scenes, drawn by capbench, which no paper reports"


def three_seeds(**changes) -> list[Result]:
    return [record(seed=seed, r1=40.0 + 2 * seed, **changes) for seed in range(3)]


def test_three_seeds_are_shown_as_mean_and_half_the_t_interval(tmp_path):
    shown = text(fake(tmp_path / "p"), saved(tmp_path, *three_seeds()))
    half = 4.302653 * np.std([40, 42, 44], ddof=1) / np.sqrt(3)
    line = f"| mobilenet_v2, 1C | `hard` | 3 | 42.0\u00a0±\u00a0{half:.1f} |"
    assert f"{line}\n" in section(shown, WHOLE)
    assert f"{line} 3.0\u00a0±\u00a00.0 |\n" in section(shown, "All metrics, with intervals")


def test_the_paper_s_number_stands_in_italics_below_ours_and_ours_below_its_in_its_table(tmp_path):
    shown = text(fake(tmp_path / "p", reported()), saved(tmp_path, *three_seeds()))
    first = section(shown, WHOLE).splitlines()
    ours = next(number for number, line in enumerate(first) if "`hard`" in line)
    assert first[ours].endswith("| 42.0\u00a0±\u00a05.0\u00a0= |")
    assert first[ours + 1] == "| *the paper, vgg19* | *Hard (vgg19)* | | *41.5* |"
    lines = section(shown, "The paper's own tables").splitlines()
    theirs = next(number for number, line in enumerate(lines) if line.startswith("| 1.1 | Hard (vgg19) |"))
    assert lines[theirs].endswith("| vgg19, 1C, train | 41.5 | |")
    assert lines[theirs + 1] == "| | ↳ ours: `hard` | mobilenet_v2, 1C, 3 seeds | 42.0\u00a0±\u00a05.0\u00a0= | |"


def test_a_preset_changed_by_hand_is_never_pooled_with_the_preset_nor_judged_as_it(tmp_path):
    claim = Claim("one", "It has one recipe.", "Table 1", lambda results: Outcome("holds", str(len(results.records))))
    paper = fake(tmp_path / "p", reported(value="90.0"), claims=(claim,))
    overrides = {"training.learning_rate": 0.5}
    recipe = json.loads(json.dumps(asdict(paper.recipe("hard", "flickr8k", overrides))))
    by_hand = record(r1=99.0, overrides=overrides, recipe=recipe)
    results = saved(tmp_path, *three_seeds(), by_hand)
    shown = text(paper, results)
    (line,) = (line for line in section(shown, WHOLE).splitlines() if "`hard, training.learning_rate=0.5`" in line)
    assert "99.0" in line
    assert "▲" not in line
    assert "Caution" not in shown
    (plain_line,) = (line for line in section(shown, WHOLE).splitlines() if "| `hard` | 3 |" in line)
    assert "42.0" in plain_line
    rows = {(row.overrides != {}): row for row in rows_of(paper, results) if row.metric == "image_to_caption_r1"}
    assert (rows[True].verdict, rows[True].reason) == ("not reported", "its recipe is not the preset's")
    assert rows[False].verdict == "short"
    assert leaderboard.board(paper, results).outcomes[0][1].statement == "3"


def test_the_command_of_a_preset_changed_by_hand_sets_the_field(tmp_path):
    paper = fake(tmp_path / "p")
    runs = saved(tmp_path, record(overrides={"loss": "it's"}), record(overrides={"gone": 1}))
    assert commands.again(leaderboard.board(paper, runs)) == [
        "capbench run fake --preset hard --dataset flickr8k --encoder mobilenet_v2 --set 'loss=it'\"'\"'s' --seeds 1"
    ]


@pytest.mark.parametrize(("value", "sign"), [("20.0", "▲"), ("41.0", "="), ("44.0", "="), ("60.0", "▼")])
def test_the_sign_follows_the_verdict(tmp_path, value, sign):
    shown = text(fake(tmp_path / "p", reported(value=value)), saved(tmp_path, *three_seeds()))
    assert f"\u00a0{sign} |" in section(shown, WHOLE)


def test_numbers_of_the_paper_and_of_other_systems_are_counted_apart(tmp_path):
    other = {"system": "Other", "preset": "", "role": "baseline"}
    numbers = (
        reported(),  # reproduced
        reported(metric="image_to_caption_median_rank", value="1.0", unit="rank"),  # short
        reported(dataset="coco"),  # not run
        reported(**other, value="20.0", compare_with=("hard", "sum")),  # exceeded by hard; sum is not run
        reported(**other, value="90.0", compare_with=("hard",)),  # short
        reported(system="More", preset="", role="context"),
    )
    paper = fake(tmp_path / "p", *numbers)
    shown = text(paper, saved(tmp_path, *three_seeds()))
    assert "**The paper's own numbers: 1 matched or better, 0 close, 1 short, 1 not run.**" in shown
    assert "as baselines and counted apart: 1 matched or better, 0 close, 1 short, 1 not run." in shown
    baselines = section(shown, "Other systems, as baselines")
    assert "Hard (vgg19)" not in baselines
    assert "| `sum`: not run |" in baselines
    line = next(line for line in index(paper, Results.load(tmp_path / "results")).splitlines() if "fake.md" in line)
    own, others = "1 matched or better, 0 close, 1 short, 1 not run", "1 matched or better, 0 close, 1 short, 1 not run"
    assert f"| {own} | {others} |" in line


def test_a_target_with_several_runs_counts_once_by_the_best_of_them(tmp_path):
    results = saved(tmp_path, *three_seeds(), *three_seeds(encoder="vgg19", metrics={"image_to_caption_r1": 10.0}))
    assert "1 matched or better, 0 close, 0 short, 0 not run" in text(fake(tmp_path / "p", reported()), results)


@pytest.mark.parametrize(("encoder", "sign"), [("mobilenet_v2", "▼"), ("resnet152", "▲")])
def test_of_several_numbers_the_first_screen_judges_by_that_of_the_run_s_encoder_else_by_the_best(
    tmp_path, encoder, sign
):
    results = saved(tmp_path, *three_seeds())
    numbers = reported(value="60.0", encoder=encoder, system="Large"), reported(value="20.0")
    for place, order in enumerate((numbers, numbers[::-1])):
        shown = section(text(fake(tmp_path / f"p{place}", *order), results), WHOLE)
        assert f"| 42.0\u00a0±\u00a05.0\u00a0{sign} |" in shown
        assert f"| *the paper, {encoder}* | *Large* | | *60.0* |" in shown
        assert "| *the paper, vgg19* | *Hard (vgg19)* | | *20.0* |" in shown


def test_a_paper_s_number_stands_once_below_the_last_of_the_presets_that_it_is_compared_with(tmp_path):
    numbers = reported(preset="unborn", compare_with=("hard", "sum")), reported(preset="sum", system="Sum", value="9.0")
    first = section(text(fake(tmp_path / "p", *numbers), saved(tmp_path, record(), record("sum"))), WHOLE)
    lines = [line.split("|")[2].strip() for line in first.splitlines() if line.startswith("| ")][1:]
    assert lines == ["`hard`", "`sum`", "*Hard (vgg19)*", "*Sum*"]


def test_a_short_number_stands_beside_what_it_is_with_another_encoder_recipe_rule_or_beam(tmp_path):
    captioner = {"image_to_caption_r1": 40.0, "bleu4": 20.0, "bleu4_as_written": 26.0, "bleu4_no_bp": 21.0}
    beams = {"bleu4_beam1": 19.0, "bleu4_beam3": 24.0}
    runs = [
        record(metrics=captioner | beams),
        record(metrics={"bleu4": 25.0}, encoder="vgg19"),
        record(metrics={"bleu4": 22.5}, preset="sum"),
        record(metrics={"bleu4": 99.0}, preset="sum", encoder="vgg19"),  # differs in both
        record(metrics={"bleu4": 99.0}, protocol="1K"),
    ]
    numbers = [reported(metric="bleu4", value="25"), reported(value="39"), reported(metric="meteor", value="20")]
    other = reported(metric="bleu4", value="25", role="baseline", preset="", compare_with=("sum",), system="Other")
    results = saved(tmp_path, *runs)
    folded = section(text(fake(tmp_path / "p", *numbers, other), results), SHORT)
    lines = [line for line in folded.replace("\u00a0", " ").splitlines() if line.startswith("|")][2:]
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines] == [
        ["BLEU-4 (Table 1, row 1.1)", "*Other*", "*25*"],
        ["", "ours: `sum`, mobilenet_v2, 1C", "22.5 ▼"],
        ["", "↳ `hard`, mobilenet_v2, 1C", "20.0 ▼"],
        ["", "↳ `sum`, vgg19, 1C", "99.0 ="],
    ]  # `hard` reaches 25 with vgg19
    alone = section(
        text(fake(tmp_path / "q", *numbers), saved(tmp_path / "q", *runs[:1], runs[2])),
        "Short numbers, and what moves them",
    )
    lines = [line for line in alone.replace("\u00a0", " ").splitlines() if line.startswith("|")][2:]
    assert [line.split("|")[2:-1] for line in lines] == [
        [" *Hard (vgg19)* ", " *25* "],
        [" ours: `hard`, mobilenet_v2, 1C ", " 20.0 ▼ "],
        [" ↳ `sum`, mobilenet_v2, 1C ", " 22.5 ▼ "],
        [" ↳ scored coco-caption, without brevity penalty ", " 21.0 ▼ "],
        [" ↳ scored as written ", " 26.0 = "],
        [" ↳ with the beam that is best on test ", " 24.0 ≈ (3) "],
    ]


def test_short_numbers_of_several_columns_stand_in_the_order_of_their_heading(tmp_path):
    scores = {
        **{f"{way}_{name}": value for way in ("image_to_caption", "caption_to_image")
           for name, value in (("r10", 30.0), ("median_rank", 20.0))},
        "bleu1": 50.0, "bleu1_beam1": 55.0, "bleu1_beam5": 54.0, "bleu4": 10.0, "bleu4_beam1": 11.0,
           "bleu4_beam5": 12.0, "bleu1_no_bp": 51.0, "bleu4_no_bp": 13.0, "meteor": 9.0,
    }  # fmt: skip
    numbers = [reported(metric=key, value=str(90 + place if "rank" not in key else 1 + place))
               for place, key in enumerate(scores) if "beam" not in key and "bp" not in key]  # fmt: skip
    shown = section(text(fake(tmp_path / "p", *numbers), saved(tmp_path, record(metrics=scores))), SHORT)
    lines = [line.split("|")[1:-1] for line in shown.replace("\u00a0", " ").splitlines() if line.startswith("|")][2:]
    assert lines[0][0] == (
        " image to text R@10; median rank i→c/c→i; text to image R@10; BLEU-1/4; METEOR (Table 1, row 1.1) "
    )
    assert lines[0][2] == " *90 / 2 / 4 / 92 / 94 / 97 / 102* "
    assert [line[1:] for line in lines[1:]] == [
        [" ours: `hard`, mobilenet_v2, 1C ", " 30.0 ▼ / 20.0 ▼ / 20.0 ▼ / 30.0 ▼ / 50.0 ▼ / 10.0 ▼ / 9.0 ▼ "],
        [" ↳ scored coco-caption, without brevity penalty ", " – / – / – / – / 51.0 ▼ / 13.0 ▼ / – "],
        [" ↳ with the beam that is best on test ", " – / – / – / – / 55.0 ▼ (1) / 12.0 ▼ (5) / – "],
    ]


def test_without_a_short_number_nothing_is_said_of_any(tmp_path):
    assert "Short numbers" not in text(fake(tmp_path / "p", reported(value="20.0")), saved(tmp_path, *three_seeds()))


def test_a_target_is_compared_with_its_own_preset_and_with_the_others_it_names(tmp_path):
    number = reported(preset="unborn", compare_with=("hard",))
    assert number.presets == ("unborn", "hard")
    shown = text(fake(tmp_path / "p", number), saved(tmp_path, *three_seeds()))
    assert "1 matched or better, 0 close, 0 short, 0 not run" in shown
    assert "| `unborn`: not run" in shown


def test_a_number_without_a_run_is_pending_and_says_which_command_fills_it(tmp_path):
    paper = fake(tmp_path / "p", reported(dataset="coco", encoder="ResNet-152"), reported(dataset="mine"))
    shown = text(paper, saved(tmp_path))
    assert "| `hard`: not run |" in shown
    commands = section(shown, "Missing runs")
    assert "# for 1.1\ncapbench run fake --preset hard --dataset coco --encoder resnet152\n" in commands
    assert "mine" not in commands
    assert "No record on a real data set yet." in shown
    assert "There is no record yet." in shown


def test_an_encoder_of_the_paper_that_is_none_of_ours_is_named_in_the_comment_alone(tmp_path):
    shown = text(fake(tmp_path / "p", reported(dataset="coco", encoder="R-CNN <top>")), saved(tmp_path))
    command = "# for 1.1; the paper uses R-CNN <top>, which capbench does not have\ncapbench run fake --preset hard"
    assert f"{command} --dataset coco\n" in section(shown, "Missing runs")


def test_presets_of_one_data_set_and_encoder_are_one_command_and_a_baseline_asks_for_no_run_twice(tmp_path):
    baseline = reported(preset="", role="baseline", compare_with=("hard", "sum"), encoder="vgg16", system="Other")
    shown = text(fake(tmp_path / "p", baseline, reported(), reported(preset="sum")), saved(tmp_path))
    assert section(shown, "Missing runs").count("capbench run") == 1
    assert "capbench run fake --preset hard sum --dataset flickr8k --encoder vgg19\n" in shown


def test_a_pending_preset_that_does_not_exist_has_no_command(tmp_path):
    shown = text(fake(tmp_path / "p", reported(preset="unborn")), saved(tmp_path))
    assert "there is no preset unborn on flickr8k" in shown
    assert "--preset unborn" not in shown


def test_another_protocol_is_not_comparable_and_says_why(tmp_path):
    shown = text(fake(tmp_path / "p", reported(protocol="1K")), saved(tmp_path, record()))
    assert "`hard`: not comparable<sup>a</sup>" in shown
    assert "our runs are under whole test" in shown


def test_a_number_from_memory_is_marked_and_context_stands_in_the_csv_alone(tmp_path):
    numbers = (
        reported(confidence="memory"),
        reported(system="Other", preset="", role="context", confidence="one-source", value="39.0"),
    )
    shown = text(fake(tmp_path / "p", *numbers), saved(tmp_path, record()))
    assert "| 41.5† |" in shown
    assert "39.0" not in shown
    assert "Numbers for context stand there alone and are not judged: 1." in shown


def test_a_page_without_numbers_to_compare_with_says_so(tmp_path):
    shown = text(fake(tmp_path / "p", reported(preset="", role="context")), saved(tmp_path, record()))
    assert "**The paper has no number that our runs can be compared with** (for context: 1)." in shown


def test_numbers_of_one_column_share_a_cell(tmp_path):
    recalls = {f"image_to_caption_r{k}": 10.0 * k for k in (1, 5, 10)}
    numbers = [reported(metric=f"image_to_caption_r{k}", value=f"{9.5 * k}") for k in (1, 10)]
    shown = text(fake(tmp_path / "p", *numbers), saved(tmp_path, record(metrics=recalls)))
    assert "| model | recipe | seeds | image to text R@1/5/10 |" in section(shown, WHOLE)
    assert "| 10.0\u00a0= / 50.0 / 100.0\u00a0= |" in section(shown, WHOLE)
    assert "| *9.5 / – / 95.0* |" in section(shown, WHOLE)
    assert "| image to text R@1/10 | ours |" in section(shown, "The paper's own tables")


def test_the_first_table_has_seven_columns_at_most(tmp_path):
    names = ("meteor", "cider", "rouge_l", "spice", "perplexity", "novelty", "self_bleu")
    bleus = [f"bleu{n}{more}" for n in (1, 2, 3, 4) for more in ("", "_no_bp")]
    both = record(metrics=dict.fromkeys([*names, *bleus, "image_to_caption_r1", "rsum"], 10.0))
    shown = text(fake(tmp_path / "p", reported(metric="bleu4_no_bp")), saved(tmp_path, both))
    heads = section(shown, WHOLE).splitlines()[1].strip("| ").split(" | ")
    assert heads[3:] == ["BLEU-1/2/3/4", "BLEU-1/2/3/4 without brevity penalty", "METEOR", "CIDEr-D"]


def test_the_first_table_shows_the_rule_that_a_paper_scores_by(tmp_path):
    keys = [*(f"bleu{n}_as_written_no_bp" for n in (1, 2, 3, 4)), "meteor_as_written"]
    ours = record(metrics=dict.fromkeys([*keys, *(f"bleu{n}" for n in (1, 2, 3, 4)), "meteor", "cider"], 10.0))
    shown = text(fake(tmp_path / "p", *(reported(metric=key) for key in keys)), saved(tmp_path, ours))
    heads = section(shown, WHOLE).splitlines()[1].strip("| ").split(" | ")
    as_written = ["BLEU-1/2/3/4 as written, without brevity penalty", "METEOR as written"]
    assert heads[3:] == ["BLEU-1/2/3/4", "METEOR", "CIDEr-D", *as_written]


def test_embedded_results_stand_apart_and_meet_no_number_of_a_paper(tmp_path):
    paper = fake(tmp_path / "p", reported(dataset="scenes"))
    results = saved(tmp_path, *three_seeds(dataset="scenes", encoder="scenes"))
    shown = text(paper, results)
    assert "No record on a real data set yet." in shown
    assert "↳ ours" not in shown
    assert "| scenes, 1C | `hard` | 3 |" in section(shown, SCENES)
    ours = [row for row in rows_of(paper, results) if row.mean is not None]
    assert {row.verdict for row in ours} == {"not reported"}


def other_folder(**changes) -> Result:
    """A later run of seed 0 on fifteen images of somebody's own, in a folder of the same name."""
    fault = "15 images, 75 captions (5 each); not the published split (test: 15, published 1,000)"
    mine = {
        "dataset_fingerprint": "123456789abcdef", "published": False, "images": 15, "notes": [fault],
        "started": "2025-01-01T00:00:00+00:00",
    }  # fmt: skip
    return record(**{"r1": 93.3, **mine, **changes})


def test_a_run_on_other_data_under_the_same_name_stands_apart_and_is_not_judged(tmp_path):
    paper = fake(tmp_path / "p", reported(), claims=(Claim("mean", "It is 42.", "section 1", mean_of_r1),))
    before = saved(tmp_path, *three_seeds())
    page_before, rows_before, index_before = text(paper, before), rows_of(paper, before), index(paper, before)
    after = saved(tmp_path, other_folder())
    shown, rows = text(paper, after), rows_of(paper, after)
    name = "flickr8k, not the published split: 15 test images, data set 123456789abc"

    for heading in (WHOLE, "The paper's own tables", "Claims"):
        assert section(shown, heading) == section(page_before, heading)
    assert "42.0" in section(shown, "Claims")
    assert "1 matched or better, 0 close, 0 short" in shown
    other = section(shown, f"{name}, test split, protocol whole")
    assert "| mobilenet_v2, 1C | `hard` | 1 | 93.3 |" in other
    assert "the paper" not in other
    assert "and not shown" not in shown
    assert f"| `hard`, mobilenet_v2, 1C | {name}, whole | [0](" in section(shown, "What each number rests on")

    new = [row for row in rows if row not in rows_before]
    assert [row for row in rows if row in rows_before] == rows_before
    assert {(row.verdict, row.reason, row.dataset_fingerprint) for row in new} == {
        ("not reported", name, "123456789abcdef")
    }
    counts = "1 matched or better, 0 close, 0 short, 0 not run | – | 1 holds, 0 fail, 0 open |"
    assert f"| flickr8k | 3 | {counts}" in index_before
    assert f"| flickr8k, other data | 4 | {counts}" in index(paper, after)


def mean_of_r1(results: Results) -> Outcome:
    values = results.values("image_to_caption_r1")
    return Outcome("holds", f"{sum(values.values()) / len(values):.1f}")


def test_without_a_run_on_the_published_split_a_number_is_pending(tmp_path):
    shown = text(fake(tmp_path / "p", reported()), saved(tmp_path, other_folder()))
    assert "| `hard`: not run |" in section(shown, "The paper's own tables")
    assert "93.3" not in section(shown, "The paper's own tables")


def test_other_data_are_drawn_in_plots_of_their_own_and_change_no_other(tmp_path):
    ranks = {"image_to_caption": np.arange(100), "caption_to_image": np.arange(500)}
    paper = fake(tmp_path / "p")
    before = leaderboard.render(leaderboard.board(paper, saved(tmp_path, *three_seeds(), arrays=ranks)))
    after = leaderboard.render(leaderboard.board(paper, saved(tmp_path, other_folder(), arrays=ranks)))
    plots = {name: content for name, content in before.items() if name != "fake.md"}
    assert len(plots) == 2
    assert {name: after[name] for name in plots} == plots
    assert len(after) == len(before) + 2


def test_other_data_have_a_table_of_their_own_in_the_terminal(tmp_path):
    records = saved(tmp_path, record(), other_folder()).records
    first, second = terminal.tables(fake(tmp_path / "p"), records)
    assert str(first.title).startswith("flickr8k, test split")
    assert str(second.title).startswith("flickr8k, not the published split: 15 test images")


def test_scenes_of_an_older_generator_stand_apart_and_are_used_for_no_claim(tmp_path, scenes_of_today):
    claim = Claim("mean", "It is 42.", "section 1", mean_of_r1)
    now = {"dataset": "scenes", "encoder": "scenes", "dataset_fingerprint": scenes_of_today}
    later = "2025-01-01T00:00:00+00:00"
    old = record(r1=10.0, started=later, **now | {"dataset_fingerprint": "0" * 64, "images": 20})
    shown = text(fake(tmp_path / "p", claims=(claim,)), saved(tmp_path, *three_seeds(**now), old))
    embedded = section(shown, SCENES)
    today, before = embedded.split("**scenes, not as they are drawn today: 20 test images, data set 000000000000")
    assert "**scenes, test split" in today
    assert "| scenes, 1C | `hard` | 3 | 42.0" in today
    assert "| scenes, 1C | `hard` | 1 | 10.0" in before
    assert "42.0" in section(shown, "Claims")


@pytest.mark.fault("records of an older schema or a dirty tree")
def test_records_of_a_dirty_tree_or_an_older_schema_are_shown_and_marked(tmp_path):
    saved(tmp_path, record(seed=0, dirty=True), record(seed=1), record(seed=2))
    old = next(path for path in (tmp_path / "results").glob("*-s1-*.json"))
    document = json.loads(old.read_text())
    for name in ("schema_version", "threads", "versions", "commit"):
        del document[name]
    old.write_text(json.dumps({**document, "mood": "good"}))
    leaderboard.write({"fake": fake(tmp_path / "p", reported())}, tmp_path)
    shown = (tmp_path / "fake.md").read_text()
    caution = next(line for line in shown.splitlines() if "Caution:" in line)
    assert "dirty tree (seed 0)" in caution
    assert "schema 0: no commit, versions, threads (seed 1)" in caution
    assert "unknown fields: mood (seed 1)" in caution
    assert "| mobilenet_v2, 1C | `hard`<sup>a</sup> | 3 |" in shown
    provenance = section(shown, "What each number rests on")
    assert "`0123456789` + changes" in provenance
    assert "CPU, test, unknown threads" in provenance


def test_a_recipe_that_has_changed_since_is_marked(tmp_path):
    changed = record().recipe | {"margin": 0.1}
    shown = text(fake(tmp_path / "p"), saved(tmp_path, record(recipe=changed), record(seed=1)))
    assert "recipe differs from the preset of today in margin (seed 0)" in shown
    assert "the seeds differ in their recipe" in shown


@pytest.mark.parametrize(
    ("field", "values", "words"),
    [
        ("instruction_set", ("AVX2", "AVX512", "AVX512"), "instruction set: AVX2 (seed 0), AVX512 (seeds 1, 2)"),
        ("precision", ("bf16", "fp32", "bf16"), "precision: bf16 (seeds 0, 2), fp32 (seed 1)"),
        ("blas", ("MKL 2024.2", "", "open<blas>"), "BLAS: MKL 2024.2 (seed 0), open&lt;blas&gt; (seed 2)"),
        ("threads", (1, 2, 2), "number of threads: 1 (seed 0), 2 (seeds 1, 2)"),
    ],
)
def test_seeds_that_were_not_computed_alike_are_noted(tmp_path, field, values, words):
    records = [record(seed=seed, **{field: value}) for seed, value in enumerate(values)]
    shown = text(fake(tmp_path / "p"), saved(tmp_path, *records))
    assert f"Caution: the seeds differ in their {words}\n" in shown


def test_a_field_that_older_records_lack_is_unknown_and_no_difference(tmp_path):
    new = record(seed=1, instruction_set="AVX2", precision="fp32", blas="MKL 2024.2")
    assert "Caution:" not in text(fake(tmp_path / "p"), saved(tmp_path, record(), new))


def test_provenance_says_what_a_number_was_computed_with_where_it_is_known(tmp_path):
    new = record(seed=1, instruction_set="AVX2", precision="fp32", blas="MKL 2024.2")
    shown = section(text(fake(tmp_path / "p"), saved(tmp_path, record(), new)), "What each number rests on")
    assert "- E1: CPU, test, 1 threads; torch 2.15.0\n" in shown
    assert "- E2: CPU, test, 1 threads, AVX2, MKL 2024.2, fp32; torch 2.15.0\n" in shown


def test_a_missing_metric_is_a_dash_with_the_reason_that_the_record_gives(tmp_path):
    with_meteor = record("sum", metrics={"image_to_caption_r1": 30.0, "meteor": 20.0, "bleu4": 11.0})
    without = record("hard", notes=["METEOR: no Java on this machine"])
    shown = text(fake(tmp_path / "p"), saved(tmp_path, with_meteor, without))
    line = next(line for line in section(shown, WHOLE).splitlines() if "| `hard`" in line)
    assert line.endswith("| –<sup>a</sup> | –<sup>b</sup> | –<sup>c</sup> |")
    assert "<sup>a</sup> the records have no bleu1" in section(shown, WHOLE)
    assert "<sup>b</sup> METEOR: no Java on this machine" in section(shown, WHOLE)
    assert not re.search(r"\| 0(\.0+)? \|", line)


def test_a_metric_that_some_seeds_lack_says_which_seeds_it_is_of(tmp_path):
    results = saved(tmp_path, record(seed=0), record(seed=1, metrics={"image_to_caption_median_rank": 3.0}))
    assert "i→c R@1 from seed 0 alone: the records have no image&#95;" not in text(fake(tmp_path / "p"), results)
    assert "i→c R@1 from seed 0 alone: the records have no image_to_caption_r1" in text(fake(tmp_path / "p"), results)


def test_the_latest_record_of_a_seed_wins_and_the_earlier_one_is_counted(tmp_path):
    first = record(r1=10.0, started="2024-01-01T00:00:00+00:00")
    shown = text(fake(tmp_path / "p"), saved(tmp_path, first, record(r1=20.0)))
    assert "| 20.0 |" in shown
    assert "| 10.0 |" not in shown
    assert "and not shown: 1." in shown


def test_one_seed_has_a_bootstrap_interval_while_its_ranks_are_there(tmp_path):
    ranks = {"image_to_caption": np.arange(100), "caption_to_image": np.arange(500)}
    paper = fake(tmp_path / "p", reported())
    results = saved(tmp_path, record(r1=1.0), arrays=ranks)
    assert re.search(r"1\.0\u00a0±\u00a0\d\.\d", text(paper, results))
    assert rows_of(paper, results)[0].test == "bootstrap over 100 queries, 1 seed"
    for bundle in (tmp_path / "results").glob("*.npz"):
        bundle.unlink()
    without = Results.load(tmp_path / "results")
    assert "| 1.0\u00a0▼ |" in text(paper, without)
    assert leaderboard.board(paper, without).matches[0].verdict.test == "1 seed, no interval"


def test_claims_show_outcome_interval_and_test_and_one_that_breaks_is_pending(tmp_path):
    interval = Interval(1.25, 0.5, 2.0, "paired bootstrap")

    def breaks(results: Results) -> Outcome:
        raise CapbenchError("the records differ")

    claims = (
        Claim("harder", "Hard beats sum.", "section 3", lambda _: Outcome("holds", "hard 40", interval, "r1")),
        Claim("broken", "It cannot be tested.", "section 4", breaks),
    )
    shown = text(fake(tmp_path / "p", claims=claims), saved(tmp_path, record()))
    table_of = section(shown, "Claims")
    assert "| Hard beats sum. (section 3) | **holds** | +1.2\u00a0[+0.5,\u00a0+2.0] | hard 40 |" in table_of
    assert "| **pending** | – | the test cannot use the records (CapbenchError): the records differ |" in table_of
    assert "Claims: 1 holds, 0 fail, 1 open." in shown
    assert "- harder: r1\n" in section(shown, "How the claims were tested")


def test_a_claim_that_holds_in_part_says_how_far(tmp_path):
    outcome = Outcome("holds", "1 to 64", qualifier="at its ends, not monotone")
    claims = (Claim("set", "More is better.", "figure 2", lambda _: outcome),)
    shown = text(fake(tmp_path / "p", claims=claims), saved(tmp_path, record()))
    assert "| **holds at its ends, not monotone** |" in section(shown, "Claims")


def test_provenance_names_record_seed_commit_device_time_versions_and_command(tmp_path):
    shown = section(text(fake(tmp_path / "p"), saved(tmp_path, record(seed=7))), "What each number rests on")
    (name,) = (path.name for path in (tmp_path / "results").glob("*.json"))
    line = f"| `hard`, mobilenet_v2, 1C | flickr8k, whole | [7](results/{name}) | 60\u00a0s | `0123456789` | E1 |"
    assert f"{line}\n" in shown
    assert "- E1: CPU, test, 1 threads; torch 2.15.0\n" in shown
    assert "\ncapbench run fake --preset hard --dataset flickr8k --encoder mobilenet_v2 --seed 7\n" in shown


def test_the_commands_that_make_records_again_cover_each_seed_once(tmp_path):
    runs = saved(tmp_path, *three_seeds(), *three_seeds(preset="sum"), record("gone"), record(encoder="strange"))
    lines = commands.again(leaderboard.board(fake(tmp_path / "p"), runs))
    assert lines == ["capbench run fake --preset hard sum --dataset flickr8k --encoder mobilenet_v2 --seeds 3"]
    runs = saved(tmp_path, record(seed=5))
    lines = commands.again(leaderboard.board(fake(tmp_path / "p"), runs))
    assert sorted(line.split("mobilenet_v2 ")[1] for line in lines) == [
        *(f"--seed {n}" for n in (0, 1, 2, 5)),
        "--seeds 3",
    ]


@pytest.mark.fault("markup in the fields of a record")
def test_nothing_in_a_record_is_read_as_markdown_or_html(tmp_path):
    nasty: Any = dict.fromkeys(("preset", "encoder", "view", "device", "command", "commit"), NASTY)
    hostile = record(notes=[NASTY], versions={NASTY: NASTY}, **{**nasty, "dataset": "flickr8k" + NASTY})
    outcome = Outcome("holds", NASTY, detail=NASTY, qualifier=NASTY)
    claims = (Claim(NASTY, NASTY, NASTY, lambda _: outcome),)
    texts = ("table", "system", "encoder", "crop", "train_split", "protocol")
    theirs = [reported(**dict.fromkeys(texts, NASTY)), reported(system=NASTY, encoder=NASTY)]
    paper = fake(tmp_path / "p", *theirs, claims=claims)
    files = leaderboard.render(leaderboard.board(paper, saved(tmp_path, hostile, record())))
    shown = files["fake.md"].decode()
    fenced = re.compile(r"^(`{3,}).*?^\1$", re.M | re.S)
    assert "alert(1)" in shown
    assert "<script" not in fenced.sub("", shown)
    assert "\x00" not in shown
    for block in re.findall(r"(?:^\|.*\n)+", fenced.sub("", shown), re.M):
        assert len({row.count("|") for row in block.splitlines()}) == 1
    assert all(re.fullmatch(r"fake\.md|plots/[A-Za-z0-9_.-]+\.svg", name) for name in files)
    assert all(b"<script" not in content for name, content in files.items() if name.endswith(".svg"))


def cells_of(row: list[str]) -> list[str]:
    """What a markdown reader makes of a table's row: the words of its cells."""
    markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py comes with rich")
    tokens = markdown_it.MarkdownIt("commonmark").enable("table").parse(table(["x"] * len(row), [row], "l" * len(row)))
    body = [token for token in tokens if token.type == "inline"][len(row) :]
    kinds = ("text", "code_inline", "text_special", "entity")
    return [
        html.unescape("".join(child.content for child in cell.children or [] if child.type in kinds)) for cell in body
    ]


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=30) | st.lists(st.sampled_from([*"|`*_<>[]()\\~#$&!\n\r\t -+=", "a", "1."])).map("".join))
def test_any_text_in_a_cell_is_read_back_as_itself(words):
    assert cells_of(["left", escape(words), code(words), "right"]) == [
        "left",
        plain(words),
        plain(words) or "–",
        "right",
    ]


def test_a_surrogate_a_control_character_and_a_change_of_direction_cannot_get_through():
    assert plain("a\ud800b\x1bc\u202ed\x0be\u2029f") == "a\ufffdb\ufffdc\ufffdd e f"
    assert plain("x" * 1000) == "x" * 399 + "…"


def test_a_fence_is_longer_than_the_backticks_in_it():
    assert code_block(["a ```` b"]) == "`````sh\na ```` b\n`````"


def test_a_cell_that_would_break_the_table_is_refused():
    with pytest.raises(ValueError, match="cannot hold the row"):
        table(["a"], [["x|y"]], "l")


def test_metrics_stand_in_their_order_and_unknown_ones_last():
    keys = ["zeal", "cider", "bleu4", "bleu1", "rsum", "caption_to_image_r1", "image_to_caption_mean_rank"]
    heads = [metric.heading for metric in columns(keys)]
    assert heads == ["c→i R@1", "rsum", "BLEU-1", "BLEU-4", "CIDEr-D", "zeal"]
    assert "i→c mean r" in [metric.heading for metric in columns(keys, lesser=True)]


def test_every_reported_number_and_every_metric_of_ours_is_a_row_of_the_json(tmp_path):
    paper = fake(
        tmp_path / "p", reported(), reported(dataset="coco"), reported(system="Other", preset="", role="context")
    )
    saved(tmp_path, *three_seeds())
    rows = json.loads(json.dumps(leaderboard.rows_as_json({"fake": paper}, tmp_path)))
    assert [(row["verdict"], row["reported"], row["metric"]) for row in rows] == [
        ("reproduced", "41.5", "image_to_caption_r1"),
        ("pending", "41.5", "image_to_caption_r1"),
        ("not comparable", "41.5", "image_to_caption_r1"),
        ("not reported", "", "image_to_caption_median_rank"),
    ]
    first = rows[0]
    assert first["mean"] == 42.0
    assert first["ci_low"] < 40 < 44 < first["ci_high"]
    assert (first["seeds"], first["encoder"], first["reported_encoder"]) == ([0, 1, 2], "mobilenet_v2", "vgg19")


def test_other_systems_are_rows_of_the_json_too(tmp_path):
    saved(tmp_path, record(paper="systems", preset="theirs", seed=3, notes=["signature: a|depth:5|version:1"]))
    *_, row = leaderboard.rows_as_json({"fake": fake(tmp_path / "p", reported())}, tmp_path)
    assert (row["paper"], row["preset"], row["seeds"], row["scoring"]) == ("systems", "theirs", (3,), "a|depth:5")
    assert (row["metric"], row["mean"], row["verdict"]) == ("image_to_caption_r1", 40.0, "not reported")


def test_the_rows_are_a_table_too(tmp_path):
    saved(tmp_path, *three_seeds(), *three_seeds(preset="sum"))
    frame = leaderboard.frame({"fake": fake(tmp_path / "p", reported())}, tmp_path)
    means = frame.pivot(index="preset", columns="metric", values="mean")
    assert means.loc["sum", "image_to_caption_r1"] == 42.0
    assert frame.verdict.value_counts().to_dict() == {"not reported": 3, "reproduced": 1}


def test_check_names_what_is_missing_changed_or_left_over_and_write_mends_it(tmp_path):
    papers = {"fake": fake(tmp_path / "p", reported())}
    saved(tmp_path, record())
    pages = [tmp_path / name for name in ("README.md", "fake.md", "kernels.md", "encoders.md")]
    assert leaderboard.write(papers, tmp_path) == pages
    assert leaderboard.check(papers, tmp_path) == []
    (plot,) = (tmp_path / "plots").glob("*-curves.svg")
    old = plot.with_name("fake-gone-curves.svg")
    old.write_bytes(plot.read_bytes())
    (tmp_path / "NOTES.md").write_text("written by hand")
    (tmp_path / "fake.md").write_text("42")
    plot.unlink()
    assert leaderboard.check(papers, tmp_path) == sorted([plot, old, tmp_path / "fake.md"])
    leaderboard.write(papers, tmp_path)
    assert leaderboard.check(papers, tmp_path) == []
    assert not old.exists()
    assert (tmp_path / "NOTES.md").read_text() == "written by hand"


@pytest.mark.fault("kill -9 while a page or a plot is written")
def test_what_a_killed_writer_left_is_removed_though_no_page_has_changed(tmp_path):
    papers = {"fake": fake(tmp_path / "p", reported())}
    saved(tmp_path, record())
    leaderboard.write(papers, tmp_path)
    remains = [tmp_path / ".fake.md.a1b2c3d4.tmp", tmp_path / "plots" / ".fake-gone-curves.svg.a1b2c3d4.tmp"]
    at_work = tmp_path / "plots" / ".fake-curves.svg.b1b2c3d4.tmp"
    for path in (*remains, at_work):
        path.write_bytes(b"half")
    for path in remains:
        os.utime(path, (0, 0))
    leaderboard.write(papers, tmp_path)
    assert [path for path in (*remains, at_work) if path.exists()] == [at_work]


def test_a_new_record_makes_the_pages_stale(tmp_path):
    papers = {"fake": fake(tmp_path / "p")}
    saved(tmp_path, record())
    leaderboard.write(papers, tmp_path)
    saved(tmp_path, record(seed=1))
    assert tmp_path / "fake.md" in leaderboard.check(papers, tmp_path)


def test_the_index_tells_of_every_paper_and_of_records_that_belong_to_none(tmp_path):
    papers = {"fake": fake(tmp_path / "p", reported()), "other": fake(tmp_path / "q", name="other")}
    saved(tmp_path, record(), record(paper="lost|found"))
    leaderboard.write(papers, tmp_path)
    index = (tmp_path / "README.md").read_text()
    assert all(f"| {rule.sign} | {rule.status} | {rule.words} |\n" in index for rule in RULES)
    counts = "0 matched or better, 1 close, 0 short, 0 not run"
    assert f"| [Fake: a paper](fake.md) | flickr8k | 1 | {counts} | – | – |" in index
    assert "(other.md) | – | 0 | – | – | – |" in index
    assert "lost&#124;found (1)" in index


def test_the_terminal_tables_show_our_means(tmp_path):
    saved(tmp_path, *three_seeds(), record("[red]sum"))
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(*terminal.tables(fake(tmp_path / "p"), load_results(tmp_path / "results")))
    shown = console.export_text()
    assert " 42.0" in shown
    assert "[red]sum" in shown


@pytest.mark.parametrize("name", list(papers()))
def test_no_number_is_cut_in_a_terminal_of_80_columns(name):
    local = Results.load(Path(__file__).parents[1] / "leaderboards" / "results", name)
    words = {setting(runs.first): "agrees" for runs in gather(papers()[name], local)}
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(*terminal.tables(papers()[name], local.records, words))
    shown = console.export_text()
    assert shown.strip()
    assert "…" not in shown


def rendered(folder: Path) -> dict[str, str]:
    """Every file of a small board, as text."""
    paper = fake(folder / "p", reported(), reported(dataset="coco"))
    files = leaderboard.render(leaderboard.board(paper, Results.load(folder / "results")))
    return {name: content.decode() for name, content in files.items()}


def test_the_same_records_give_the_same_bytes_in_another_process_with_another_hash_seed(tmp_path):
    ranks = {"image_to_caption": np.arange(100) // 3, "caption_to_image": np.arange(500) // 7}
    saved(tmp_path, *three_seeds(), record("sum"), arrays=ranks)
    here = rendered(tmp_path)
    assert rendered(tmp_path) == here
    program = "import json, sys; from pathlib import Path; from tests.test_leaderboard import rendered; "
    program += "sys.stdout.buffer.write(json.dumps(rendered(Path(sys.argv[1]))).encode())"
    environment = {**os.environ, "PYTHONHASHSEED": "4242", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", program, str(tmp_path)]
    there = subprocess.run(words, env=environment, capture_output=True, check=True, timeout=250, cwd=tmp_path)
    assert json.loads(there.stdout) == here
    assert sorted(name.rpartition("-")[2] for name in here) == ["beside.svg", "curves.svg", "fake.md", "recall.svg"]


def test_a_field_that_came_after_a_record_is_no_change_of_its_recipe(tmp_path):
    old = record()
    recipe = {name: value for name, value in old.recipe.items() if name != "min_count"}
    shown = text(fake(tmp_path / "p"), saved(tmp_path, record(recipe=recipe)))
    assert "recipe differs" not in shown


def test_own_runs_get_rows_of_their_own_and_change_no_committed_row_or_count(tmp_path):
    paper = fake(tmp_path / "p", reported(), claims=(Claim("mean", "It is 42.", "section 1", mean_of_r1),))
    committed = leaderboard.board(paper, saved(tmp_path, *three_seeds()))
    before = page(committed, []).splitlines()
    own = saved(tmp_path / "runs", record(r1=99.0, started="2030-01-01T00:00:00+00:00"))
    shown = page(committed, [], leaderboard.board(paper, own, "this machine")).splitlines()
    added = [line for line in shown if "this machine" in line]
    assert [line for line in shown if line not in added] == before
    assert added == [
        "| mobilenet_v2, 1C, this machine | `hard` | 1 | 99.0\u00a0= |",
        "| mobilenet_v2, 1C, this machine | `hard` | 1 | 99.0 | 3.0 |",
    ]


def test_a_record_that_is_committed_too_is_shown_once(tmp_path):
    saved(tmp_path, record())
    (path,) = (tmp_path / "results").glob("*.json")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / path.name).write_bytes(path.read_bytes())
    leaderboard.write_page(fake(tmp_path / "p"), tmp_path, Results.load(tmp_path / "runs"))
    assert "this machine" not in (tmp_path / "fake.md").read_text()


def test_a_page_with_own_runs_is_restored_from_the_committed_records(tmp_path):
    ranks = {"image_to_caption": np.arange(100), "caption_to_image": np.arange(500)}
    papers = {"fake": fake(tmp_path / "p", reported())}
    saved(tmp_path, *three_seeds(), arrays=ranks)
    leaderboard.write(papers, tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    own = saved(tmp_path / "runs", record(), record(dataset="scenes", encoder="scenes"), arrays=ranks)
    leaderboard.write_page(papers["fake"], tmp_path, own)
    assert "this machine" in (tmp_path / "fake.md").read_text()
    assert leaderboard.check(papers, tmp_path) != []
    leaderboard.write(papers, tmp_path)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "runs" not in path.parts}
    assert kept == files


def test_a_folder_without_records_is_refused_and_no_empty_page_is_written(tmp_path):
    papers = {"fake": fake(tmp_path / "p")}
    for command in (leaderboard.write, leaderboard.check, leaderboard.rows_as_json):
        with pytest.raises(CapbenchError, match="typo has no record in results/, timings/ or probes/"):
            command(papers, tmp_path / "typo")
    assert not (tmp_path / "typo").exists()
