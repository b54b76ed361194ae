"""`capbench score` and `rescore`: what they print and record, what pages show, and the committed records again."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from capbench import leaderboard
from capbench.base.errors import CapbenchError
from capbench.cli import score as command
from capbench.cli.app import app
from capbench.data import datasets
from capbench.data.captions import CaptionDataset
from capbench.data.datasets import load_dataset
from capbench.data.scenes import scenes
from capbench.evidence.records import SYSTEMS, Result, load_arrays, load_results, save_result, signature_of
from capbench.evidence.results import Results
from capbench.metrics import captioning, jars, positives
from capbench.metrics.registry import metric
from capbench.metrics.retrieval import PROTOCOLS, SIMILARITIES
from capbench.runs.paper import papers
from capbench.scoring import score as scoring
from capbench.scoring.files import read_captions
from capbench.scoring.outputs import Captions, Embeddings
from capbench.scoring.records import _counted as counted
from capbench.scoring.records import rescored
from capbench.scoring.score import score
from capbench.scoring.signature import RULES
from capbench.scoring.words import captions_of
from tests.made_up import made_up_record

RESULTS = Path(__file__).parents[1] / "leaderboards" / "results"


def call(*words: object) -> None:
    app(list(map(str, words)), exit_on_error=False, print_error=False, result_action="return_value")


@pytest.fixture
def few(monkeypatch, tmp_path):
    """A few scenes, without Java, in an empty folder."""
    dataset = scenes(seed=5, train=30, val=5, test=8)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: dataset)
    for module in (jars, captioning):
        monkeypatch.setattr(module, "find_java", lambda: None)
    jars.java_version.cache_clear()
    scoring._scorers.clear()
    monkeypatch.chdir(tmp_path)
    yield dataset.split("test")
    jars.java_version.cache_clear()
    scoring._scorers.clear()


def captions_file(split) -> Path:
    return Captions.of(split, tuple(split.captions[5 * image + 1] for image in range(8))).save(Path(), "test")


def embeddings_file(split) -> Path:
    random = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(8, 4, generator=random), dim=1)
    captions = images[split.image_of_caption] + torch.randn(40, 4, generator=random)
    normalised = torch.nn.functional.normalize(captions, dim=1)
    return Embeddings.of(split, np.arange(40), images, normalised).save(Path(), "test")


def test_the_choices_of_score_are_those_of_the_modules_that_do_the_work():
    assert get_args(command.Protocol) == (*PROTOCOLS, *positives.PROTOCOLS)
    assert get_args(command.Similarity) == SIMILARITIES
    assert get_args(command.Rule) == tuple(RULES)


def test_the_chosen_rule_is_shown_first_and_the_signature_last(few, capsys):
    call("score", "captions", captions_file(few), "--rule", "as-written")
    lines = capsys.readouterr().out.splitlines()
    first = next(place for place, line in enumerate(lines) if "BLEU-1" in line)
    assert "as written" in lines[first]
    assert lines[-1].startswith("captions|data:scenes:")
    assert lines[-1].endswith("|tok:simple|java:none|rule:as-written|version:0.1.0")
    assert any(line.startswith("tokeniser: simple_tokenize") for line in lines)


def test_json_holds_metrics_notes_and_signature(few, capsys):
    call("score", "embeddings", embeddings_file(few), "--json")
    document = json.loads(capsys.readouterr().out)
    assert document["metrics"]["rsum"] > 0
    assert document["signature"].startswith("retrieval|data:scenes:")
    assert (document["dataset"], document["split"], document["protocol"]) == ("scenes", "test", "whole")
    assert not list(Path().rglob("*records*"))


def test_a_record_names_the_files_and_hashes_and_keeps_words_and_ranks(few, tmp_path, capsys):
    path = captions_file(few)
    call("score", "captions", tmp_path / path, "--record", "--system", "theirs", "--seed", "3")
    call("score", "embeddings", embeddings_file(few), "--record", "--system", "theirs")
    of_words, of_ranks = sorted(load_results(Path("runs/records")), key=lambda record: record.encoder)
    assert (of_words.paper, of_words.preset, of_words.seed, of_words.encoder) == (SYSTEMS, "theirs", 3, "captions")
    assert of_words.dataset_fingerprint == few.dataset.fingerprint
    assert any(note.startswith("file: test-captions.json, sha256 ") for note in of_words.notes)
    assert str(tmp_path) not in of_words.model_dump_json()
    assert signature_of(of_words.notes).startswith("captions|")
    arrays = load_arrays(of_words, Path("runs/records"))
    assert captions_of(of_words, arrays, few.dataset) == list(read_captions(path).captions)
    assert {"bleu_statistics", "bleu_as_written_statistics", "rouge_l", "cider"} <= set(arrays)
    assert set(load_arrays(of_ranks, Path("runs/records"))) == {
        "image_to_caption",
        "caption_to_image",
        "image_of_caption",
    }
    assert of_ranks.metrics["rsum"] > 0


def test_a_record_on_a_folder_of_one_s_own_has_the_command_that_scores_it_there(few, monkeypatch):
    own = replace(few.dataset, name="birds", place="./data/birds")
    monkeypatch.setattr(datasets, "load_dataset", lambda name: own)
    call("score", "embeddings", embeddings_file(few), "--record", "--system", "theirs")
    (record,) = load_results(Path("runs/records"))
    assert record.dataset == "birds"
    assert "--dataset ./data/birds --split test" in record.command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--record"], "--record needs --system NAME"),
        (["--record", "--system", ""], "give a name of 1 to 100 printable characters"),
        (["--record", "--system", " "], "give a name of 1 to 100 printable characters"),
        (["--record", "--system", "a\nb"], "give a name of 1 to 100 printable characters"),
        (["--split", "val", "--record", "--system", "a"], "the split test has them all: give --split test"),
        (["--protocol", "1K", "--record", "--system", "a"], "protocol 1K needs at least 1,000 images"),
    ],
)
def test_a_refusal_writes_nothing(few, words, message):
    path = captions_file(few)
    with pytest.raises(CapbenchError, match=message):
        call("score", "captions", path, *words)
    assert [entry.name for entry in Path().iterdir()] == [path.name]


def test_records_of_systems_are_added_and_shown_escaped_on_a_page_of_their_own(few, capsys):
    name = "theirs | <b>*x*</b> [y](z)"
    call("score", "captions", captions_file(few), "--record", "--system", name)
    call("score", "embeddings", embeddings_file(few), "--record", "--system", name)
    before = leaderboard.render_all(leaderboard.contents(papers(), leaderboard.FOLDER))
    call("records", "add")
    call("leaderboard")
    page = Path("leaderboards/systems.md").read_text()
    assert "| theirs &#124; &lt;b&gt;&#42;x&#42;&lt;/b&gt; &#91;y&#93;(z)" in page
    assert "<b>" not in page
    assert "retrieval&#124;data:scenes" in page
    assert "captions&#124;data:scenes" in page
    assert "[other systems](systems.md), 1 so far" in Path("leaderboards/README.md").read_text()
    assert "Records of unknown papers" not in Path("leaderboards/README.md").read_text()
    assert "systems.md" not in before
    assert "other systems](" not in before["README.md"].decode()
    call("leaderboard", "--check")
    for path in Path("leaderboards/results").iterdir():
        path.unlink()
    save_result(made_up_record(), {}, Path("leaderboards/results"))
    call("leaderboard")
    assert not Path("leaderboards/systems.md").exists()


def test_seeds_that_were_scored_otherwise_are_rows_of_their_own_each_with_its_signature(few, capsys):
    path = embeddings_file(few)
    for seed, similarity in enumerate(("cosine", "cosine", "dot", "order")):
        words = ["--record", "--system", "mine", "--seed", seed, "--similarity", similarity]
        call("score", "embeddings", path, *words)
    call("score", "embeddings", path, *words)  # the same seed again
    with pytest.raises(CapbenchError, match=r"runs on 3 settings.*similarity:cosine; .*similarity:dot; "):
        call("compare", "mine", "mine", "--dataset", "scenes")
    call("records", "add")
    call("leaderboard")
    page = Path("leaderboards/systems.md").read_text()
    rows = re.findall(r"^\| mine<sup>(\w)</sup>.* \| embeddings \| (\d) \|", page, re.M)
    signatures = dict(re.findall(r"^- <sup>(\w)</sup> .*similarity:(\w+)", page, re.M))
    assert sorted((signatures[letter], seeds) for letter, seeds in rows) == [
        ("cosine", "2"),
        ("dot", "1"),
        ("order", "1"),
    ]


def test_a_systems_ranks_that_are_scored_again_take_the_place_of_the_old_ones(few):
    call("score", "embeddings", embeddings_file(few), "--record", "--system", "b")
    (path,) = Path("runs/records").glob("*.json")
    call("rescore", path, "--record")
    results = Results.load(Path("runs/records"))
    assert (len(results.records), len(results.latest.records)) == (2, 1)
    assert results.records[0].scoring.endswith("|similarity:cosine")


def test_captions_of_data_without_training_captions_have_no_novelty_and_a_note_says_so(few, capsys):
    path = captions_file(few)
    splits = tuple("val" if name == "train" else name for name in few.dataset.split_of_image)
    dataset = replace(few.dataset, split_of_image=splits)
    assert "novelty" in score(read_captions(path), few).metrics
    evaluation = score(read_captions(path), dataset.split("test"))
    assert "novelty" not in evaluation.metrics
    assert "distinct2" in evaluation.metrics
    assert "novelty: scenes has no training caption that a caption could repeat" in evaluation.notes


# Records scored again


def record_of_numbers(split, folder: Path, **changes):
    """A record of a captioner, whose captions are word numbers: those of the first reference of each image."""
    from capbench.data.vocabulary import Vocabulary

    vocabulary = Vocabulary.build(split.dataset.split("train").tokens, 1)
    numbers = np.zeros((8, 2, 30), np.int64)
    for image in range(8):
        words = vocabulary.encode(split.tokens[5 * image])[1:]
        numbers[image, 0, : len(words)] = words
    record = made_up_record(
        paper="show_and_tell", preset="nic", dataset="scenes", dataset_fingerprint=split.dataset.fingerprint,
        recipe={"min_count": 1}, vocabulary_size=len(vocabulary), metrics={"bleu4": 1.0, "perplexity": 5.0},
        notes=["meteor: it timed out", "beam: 3"],
    )  # fmt: skip
    return save_result(record.model_copy(update=changes), {"captions": numbers, "kept": np.arange(3)}, folder)


def test_rescore_prints_old_and_new_and_records_only_when_asked(few, capsys):
    path = record_of_numbers(few, Path("old"))
    call("rescore", path)
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line.split() for line in lines if line.split()[:2] == ["BLEU-4", "coco-caption"]]
    assert row[2] == "1.0"
    assert float(row[3]) > 20
    assert not Path("runs").exists()
    call("rescore", path, "--record")
    (again,) = load_results(Path("runs/records"))
    assert again.metrics["perplexity"] == 5.0
    assert again.metrics["bleu4"] > 20
    assert "beam: 3" in again.notes
    assert not any("timed out" in note for note in again.notes)
    assert f"rescored: the captions and ranks of {path.name}, made at commit c" in again.notes
    assert {"captions", "kept", "bleu_statistics"} <= set(load_arrays(again, Path("runs/records")))
    capsys.readouterr()
    call("rescore", path, "--json")
    (row,) = json.loads(capsys.readouterr().out)
    assert row["new"]["bleu4"] == again.metrics["bleu4"]


def test_a_systems_record_is_scored_again_from_its_words_and_ranks(few):
    call("score", "captions", captions_file(few), "--record", "--system", "a")
    call("score", "embeddings", embeddings_file(few), "--record", "--system", "b")
    records = load_results(Path("runs/records"))
    assert len(records) == 2
    for record in records:
        assert rescored(record, Path("runs/records"), few.dataset).metrics == record.metrics


def test_each_fold_counts_though_the_ranks_of_one_direction_are_missing():
    owners = np.arange(5000).repeat(2)
    ranks = np.where(owners < 1000, 0, 500)  # the first fold is found, the others are not
    metrics = counted({"image_of_caption": owners, "caption_to_image": ranks}, "5-fold 1K")
    assert metrics["caption_to_image_r1"] == 20.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_fingerprint": "other"}, "is of the data set scenes other, .*give the data"),
        ({"vocabulary_size": 9}, "its captions are of a vocabulary of 9 words"),
    ],
)
def test_a_record_of_other_data_is_not_scored_again(few, changes, message):
    path = record_of_numbers(few, Path("old"), **changes)
    with pytest.raises(CapbenchError, match=message):
        call("rescore", path, "--record")
    assert not Path("runs").exists()


def test_a_record_of_data_that_are_not_here_is_refused_by_its_file(few, monkeypatch):
    path = record_of_numbers(few, Path("old"), dataset="birds")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(CapbenchError, match=rf"{path.name} is of the data set birds: no data set 'birds'; there are"):
        call("rescore", path)


def test_records_of_outputs_without_ids_do_not_say_in_which_folder_they_lay(few, tmp_path):
    np.save(tmp_path / "twice.npy", np.random.default_rng(0).random((8, 40)).repeat(2, 0))
    call("score", "similarity", tmp_path / "twice.npy", "--record", "--system", "a")
    (record,) = load_results(Path("runs/records"))
    assert "folded: twice.npy has 16 rows for 8 images, equal for each image" in record.notes
    assert any(note.startswith("order: twice.npy gives no ids") for note in record.notes)
    assert str(tmp_path) not in record.model_dump_json()


def test_a_record_without_captions_and_ranks_is_refused_by_name(few):
    path = save_result(made_up_record(dataset_fingerprint=few.dataset.fingerprint), {}, Path("old"))
    with pytest.raises(CapbenchError, match=rf"{path.name} keeps neither captions nor ranks"):
        call("rescore", path)


# The committed records


@cache
def at_hand() -> dict[str, CaptionDataset]:
    """The scenes, and Flickr8K where there is one."""
    try:
        return {"scenes": scenes(), "flickr8k": datasets.load_dataset("flickr8k")}
    except CapbenchError:
        return {"scenes": scenes()}


def committed(**wanted):
    for record in load_results(RESULTS):
        chosen = all(getattr(record, name) == value for name, value in wanted.items())
        if chosen and record.dataset in at_hand() and record.arrays:
            yield record, at_hand()[record.dataset]


def printed(name: str, value: float) -> str:
    return f"{value:.{metric(name).digits}f}"


def same_digits(record: Result, metrics) -> int:
    """Asserts that metrics print as the record's do; how many were compared."""
    common = sorted(metrics.keys() & record.metrics.keys())
    assert [printed(name, metrics[name]) for name in common] == [printed(name, record.metrics[name]) for name in common]
    return len(common)


def test_the_ranks_of_every_committed_record_give_its_metrics_again():
    compared = 0
    for record, dataset in committed():
        arrays = load_arrays(record, RESULTS)
        if "image_to_caption" in arrays and "captions" not in arrays:
            compared += same_digits(record, rescored(record, RESULTS, dataset).metrics)
    assert compared >= 11 * 30


@pytest.mark.skipif(not jars.find_java(), reason="needs Java")
def test_captions_of_committed_records_exported_and_scored_again_give_their_metrics(monkeypatch, tmp_path):
    """Seed 0 of two papers' presets; METEOR, which takes half a minute, for one of them."""

    def left_out(*arguments):
        raise CapbenchError("left out")

    presets = {"nic", "gru"}
    records = [pair for pair in committed(seed=0, dataset="scenes") if pair[0].preset in presets]
    assert {record.preset for record, _ in records} == presets
    for record, dataset in records:
        with monkeypatch.context() as patch:
            if record.preset != "nic":
                patch.setattr(captioning, "meteor_statistics", left_out)
            captions = captions_of(record, load_arrays(record, RESULTS), dataset) or []
            saved = Captions.of(dataset.split("test"), tuple(captions)).save(tmp_path, record.preset)
            metrics = score(read_captions(saved), dataset.split("test")).metrics
            assert ("meteor" in metrics) == (record.preset == "nic")
            assert same_digits(record, metrics) >= 13


def test_the_committed_pages_have_no_page_of_other_systems():
    assert not (RESULTS.parent / "systems.md").exists()
