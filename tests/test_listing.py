"""What is listed: results, papers and recipes, in four formats."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capbench.base.errors import CapbenchError
from capbench.cli.app import app
from capbench.cli.formats import written
from capbench.evidence.records import save_result
from capbench.leaderboard.listing import plain_preset
from capbench.runs.paper import paper, papers
from capbench.runs.recipes import values
from tests.made_up import made_up_record

ROOT = Path(__file__).resolve().parents[1]
KEY = "image_to_caption_r1"
ROWS: list[dict[str, Any]] = [
    {"name": "a_b & 50 %", "value": 1.25, "words": ["x", "y"], "same": "z"},
    {"name": "line\nend \x1b[31m", "value": None, "words": [], "same": "z"},
]


def listed(*words: str, capsys) -> str:
    app([*words], exit_on_error=False, print_error=False, result_action="return_value")
    return str(capsys.readouterr().out)


def test_csv_reads_back_and_json_keeps_every_type():
    rows = list(csv.DictReader(io.StringIO(written(ROWS, "csv"))))
    assert rows[0] == {"name": "a_b & 50 %", "value": "1.25", "words": "x y", "same": "z"}
    assert rows[1] == {"name": "line\nend \x1b[31m", "value": "", "words": "", "same": "z"}
    assert json.loads(written(ROWS, "json")) == ROWS


def test_a_table_holds_no_control_character_and_lifts_what_is_the_same_where_asked():
    lines = written(ROWS, "table", lifts=True).splitlines()
    assert lines[0] == "same: z"
    assert lines[2].split() == ["name", "value", "words"]
    assert lines[-1].split() == ["line", "end", "\ufffd[31m", "–", "–"]
    assert "z" in written(ROWS, "table").splitlines()[2]


def test_latex_is_escaped():
    text = written(ROWS, "latex")
    assert r"a\_b \& 50 \%" in text
    assert text.startswith(r"\begin{tabular}{lrll}")


@pytest.fixture
def here(monkeypatch, tmp_path) -> Path:
    """Committed records of two presets, one that was changed by hand, and an own run of one of them."""
    monkeypatch.chdir(tmp_path)
    committed = tmp_path / "leaderboards" / "results"

    def save(folder: Path, hits: int, **changes) -> None:
        ranks = np.where(np.arange(100) < hits, 0, 20)
        metrics = {KEY: float(hits), "rsum": 4.0 * hits, "image_to_caption_mean_rank": 3.0}
        save_result(made_up_record(metrics=metrics, **changes), {"image_to_caption": ranks}, folder)

    for seed, hits in enumerate((40, 42, 44)):
        save(committed, hits, seed=seed)
    save(committed, 30, preset="vse0")
    save(committed, 90, overrides={"margin": 0.1})
    save(tmp_path / "runs" / "records", 50, encoder="vgg19")
    return tmp_path


def test_results_are_means_over_seeds_with_their_interval_and_own_runs_are_named(here, capsys):
    rows = json.loads(listed("results", "--format", "json", "--metric", KEY, capsys=capsys))
    by_name = {(row["preset"], row["encoder"]): row for row in rows}
    ours = by_name["vsepp", "mobilenet_v2"]
    half = 4.302653 * np.std([40, 42, 44], ddof=1) / np.sqrt(3)
    assert (ours["mean"], ours["seeds"], ours["records"]) == (42.0, 3, "committed")
    assert (ours["low"], ours["high"]) == pytest.approx((42 - half, 42 + half))
    assert by_name["vsepp, margin=0.1", "mobilenet_v2"]["mean"] == 90.0
    assert by_name["vsepp", "vgg19"]["records"] == "this machine"
    assert len(rows) == 4


def test_a_table_of_results_is_rounded_and_says_once_what_all_share(here, capsys):
    lines = listed("results", "--preset", "vse0", "--metric", KEY, "rsum", capsys=capsys).splitlines()
    assert lines[0].startswith("paper: vsepp, preset: vse0, ")
    assert lines[-1].split()[:2] == ["rsum", "120.0"]
    assert [line.split()[0] for line in lines[-2:]] == [KEY, "rsum"]


def test_results_are_chosen_by_paper_preset_data_set_encoder_and_metric(here, capsys):
    def count(*words: str) -> int:
        return len(json.loads(listed("results", "--format", "json", *words, capsys=capsys)))

    assert count() == 4 * 2  # mean ranks are not among the first
    assert count("--metric", "all") == 4 * 3
    assert count("--preset", "vsepp") == 3 * 2  # with the changed one
    assert count("--preset", "vsepp, margin=0.1") == 2
    assert count("--encoder", "vgg19", "--metric", "rsum") == 1
    assert count("--dataset", "flickr8k", "--paper", "vsepp") == 8


def test_other_systems_are_results_too_and_those_that_were_scored_otherwise_stand_apart(here, capsys):
    for seed, name in enumerate(("dot", "order")):
        signed = [f"signature: retrieval|similarity:{name}|version:0"]
        record = made_up_record(paper="systems", preset="theirs", seed=seed, metrics={KEY: 9.0}, notes=signed)
        save_result(record, {}, (here / "leaderboards" / "results", here / "runs" / "records")[seed])
    rows = json.loads(listed("results", "--paper", "systems", "--format", "json", capsys=capsys))
    assert [(row["preset"], row["scoring"], row["records"]) for row in rows] == [
        ("theirs", "retrieval|similarity:dot", "committed"),
        ("theirs", "retrieval|similarity:order", "this machine"),
    ]
    assert rows == json.loads(listed("results", "--format", "json", capsys=capsys))[-2:]
    assert listed("results", "--preset", "theirs", capsys=capsys).startswith("paper: systems, preset: theirs")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--preset", "vsep"], "no preset with such a record 'vsep'; did you mean 'vsepp'"),
        (["--encoder", "vgg16"], "no encoder with such a record 'vgg16'; did you mean 'vgg19'"),
        (["--metric", "rsun"], "no metric of these records 'rsun'; did you mean 'rsum'"),
        (["--paper", "vsep"], "no paper 'vsep'"),
        (["--paper", "karpathy"], "no such record in leaderboards.results or runs.records"),
        (["--dataset", "scenes"], "no dataset with such a record 'scenes'"),
    ],
)
def test_what_no_record_has_is_refused_by_name(here, words, said, capsys):
    with pytest.raises(CapbenchError, match=said):
        listed("results", *words, capsys=capsys)


def test_a_verdict_stands_beside_the_number_of_the_paper_but_not_for_a_changed_preset(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    rows = json.loads(listed("results", "--paper", "karpathy", "--format", "json", "--metric", "all", capsys=capsys))
    judged = [row for row in rows if row["verdict"]]
    assert judged
    assert {row["dataset"] for row in judged} == {"flickr8k"}
    assert all(row["reported"] for row in judged)


def test_papers_are_listed_with_the_numbers_that_their_pages_count(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    rows = {row["paper"]: row for row in json.loads(listed("papers", "--format", "json", capsys=capsys))}
    assert set(rows) == set(papers())
    for name, row in rows.items():
        targets = [number for number in paper(name).reported if number.role == "target"]
        assert row["reported"] == len(targets)
        assert row["headline"] == list(paper(name).headline)
        counted = row["matched"] + row["close"] + row["short"] + row["not_run"]
        assert counted == row["reported"]
    page = (ROOT / "leaderboards" / "karpathy.md").read_text(encoding="utf-8")
    assert f"**The paper's own numbers: {rows['karpathy']['matched']} matched or better" in page
    assert "Show and Tell" in listed("papers", capsys=capsys)


def test_a_recipe_is_shown_whole_with_its_meanings_its_command_and_what_the_paper_has(capsys):
    lines = listed("show", "vsepp-ours", "--dataset", "flickr8k", capsys=capsys).splitlines()
    assert lines[0] == "capbench run vsepp --preset vsepp-ours --dataset flickr8k"
    rows = json.loads(listed("show", "vsepp/vsepp-ours", "--dataset", "flickr8k", "--format", "json", capsys=capsys))
    ours, own = (values(paper("vsepp").recipe(name, "flickr8k")) for name in ("vsepp-ours", "vsepp"))
    assert {row["field"]: row["value"] for row in rows} == ours
    assert {row["field"] for row in rows if row["differs"]} == {name for name in ours if ours[name] != own[name]}
    assert lines[1] == f"vsepp is the paper's own; {sum(row['differs'] for row in rows)} fields differ from it"
    (line,) = (line for line in lines if line.startswith("training.lr_step_epochs"))
    assert line.split(maxsplit=3)[1:] == ["4", "15", "multiply the rate by `lr_decay` every so many epochs"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["vsep"], "no preset 'vsep'; did you mean 'vsepp'"),
        (["vsep/vsepp"], "no paper 'vsep'; did you mean 'vsepp'"),
        (["nic", "--paper", "vsepp"], "no preset 'nic'"),
    ],
)
def test_a_preset_that_is_unknown_is_refused(words, said, capsys):
    with pytest.raises(CapbenchError, match=said):
        listed("show", *words, capsys=capsys)


def test_a_preset_of_several_papers_asks_for_the_paper(monkeypatch, capsys):
    twice = {"one": paper("vsepp"), "two": paper("vsepp")}
    monkeypatch.setattr("capbench.runs.paper.papers", lambda: twice)
    with pytest.raises(CapbenchError, match="several papers have a preset vse0: say vsepp/vse0"):
        listed("show", "vse0", capsys=capsys)


@pytest.mark.parametrize("name", papers())
def test_each_preset_of_ours_has_the_paper_s_longest_name_that_it_begins_with(name):
    known = paper(name).presets("flickr8k")
    for preset in known:
        own = plain_preset(paper(name), preset, "flickr8k")
        assert own is None or (own in known and preset.startswith(own) and not own.endswith("-ours"))
    assert plain_preset(paper("vsepp"), "vsepp", "flickr8k") is None
    assert plain_preset(paper("show_and_tell"), "nic-ensemble-ours", "flickr8k") == "nic"
