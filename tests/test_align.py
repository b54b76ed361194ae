"""Alignments of a made-up model whose scores are known by hand, their drawing, and the command."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from capbench.base.errors import CapbenchError
from capbench.cli.app import app
from capbench.data.images import decode
from capbench.data.vocabulary import PAD, Vocabulary
from capbench.runs import loaded
from capbench.runs.job import Job
from capbench.runs.loaded import Trained
from capbench.tools.align import Aligned, Aligner, align, aligner, as_json, as_text, draw_alignment, region_colours

MEANING = {"a": (0.2, 0.1), "red": (2.0, 0.0), "ball": (3.0, 0.0), "of": (1.0, 1.5), "grass": (0.0, 4.0)}
VOCABULARY = Vocabulary(tuple(MEANING), (9,) * len(MEANING))
BOXES = np.tile(np.array([0.0, 0.0, 1.0, 1.0], np.float32), (20, 1))
BOXES[1] = 0.1, 0.2, 0.4, 0.6
BOXES[2] = 0.5, 0.5, 1.0, 1.0
REGIONS = torch.zeros(20, 3)
REGIONS[:3] = torch.eye(3)[[2, 0, 1]]


class Model(nn.Module):
    """Regions are their own vectors; a word has the one that it means; neither START, END nor padding may come."""

    def embed_regions(self, regions):
        return regions

    def embed_words(self, captions, lengths):
        assert captions.min() > PAD + 2
        assert lengths.tolist() == [captions.shape[1]]
        unknown = (0.0, 0.0, 0.1)  # nothing but the whole picture
        return torch.tensor([unknown] * 4 + [(*vector, 0.0) for vector in MEANING.values()])[captions]


@dataclass(frozen=True)
class Fake(Trained):
    """A finished run that sees the same regions in each picture."""

    def features(self, pictures, **options):
        assert [decode(path).shape for path in pictures] == [(50, 100, 3)]
        return REGIONS[None].numpy()

    def boxes(self, pictures, **options):
        return torch.from_numpy(BOXES)[None]


@pytest.fixture
def run():
    recipe = SimpleNamespace(output="regions", view="whole", region_provider="multiscale", beta=1.0)
    return Fake(Job("karpathy", "alignment", "scenes", "scenes", 0), recipe, VOCABULARY, Model(), {})


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (100, 50), "white").save(path)
    return path


def test_each_word_has_its_best_region_without_affinity(run, photo):
    found = align(run, photo, "A red ball -- of Grass!", 0.0)
    assert found.words == ("a", "red", "ball", "of", "grass")
    assert found.scores[:, 1:3].tolist() == [pytest.approx(MEANING[word]) for word in found.words]
    assert found.scores.shape == (5, 20)
    assert found.labels.tolist() == [1, 1, 1, 2, 2]
    assert [one[:3] for one in found.snippets] == [(1, 0, 3), (2, 3, 5)]
    assert [one.score for one in found.snippets] == pytest.approx([(0.2 + 2 + 3) / 3, (1.5 + 4) / 2])
    assert [found.text(one) for one in found.snippets] == ["a red ball", "of grass"]
    assert found.unknown == ()


def test_affinity_joins_neighbours_as_far_as_it_pays(run, photo):
    """ "of" between two words of region 1 loses 0.5 there and gains two agreements: it joins them from 0.25 on."""
    assert align(run, photo, "red of ball", 0.2).labels.tolist() == [1, 2, 1]
    assert align(run, photo, "red of ball", 0.3).labels.tolist() == [1, 1, 1]
    assert align(run, photo, "red ball of grass", 50.0).labels.tolist() == [1] * 4  # 6 against 5.5
    assert len(align(run, photo, "red of ball", 0.2).snippets) == 3


def test_words_that_the_model_does_not_know_are_told(run, photo):
    found = align(run, photo, "purple ball of purple velvet", 0.0)
    assert found.unknown == ("purple", "velvet")
    assert found.labels.tolist() == [0, 1, 2, 0, 0]
    assert as_text(found)[-1] == "not in the vocabulary: purple, velvet"


def test_captions_that_cannot_be_aligned_are_refused(run, photo, tmp_path):
    with pytest.raises(CapbenchError, match="has no word with a letter from a to z or a digit"):
        align(run, photo, " ... ", 1.0)
    with pytest.raises(CapbenchError, match=r"alignment on scenes.* knows no word of 'Purple, purple'"):
        align(run, photo, "Purple, purple", 1.0)
    for beta in (-1.0, float("nan"), float("inf")):
        with pytest.raises(CapbenchError, match="beta must be finite and not negative"):
            align(run, photo, "a ball", beta)
    with pytest.raises(CapbenchError, match=r"absent\.png"):
        align(run, tmp_path / "absent.png", "a ball", 1.0)


def test_text_and_json_say_where_each_snippet_is(run, photo):
    found = align(run, photo, "red velvet of grass", 0.0)
    assert as_text(found)[:3] == [
        "   2.000  red       region  1: 10-40 % across, 20-60 % down",
        "   0.100  velvet    whole picture",
        "   2.750  of grass  region  2: 50-100 % across, 50-100 % down",
    ]
    read = json.loads(json.dumps(as_json(found)))
    assert read["words"][0] == {"word": "red", "region": 1, "score": 2.0}
    assert read["snippets"][2] == {
        "text": "of grass", "region": 2, "start": 2, "end": 4, "score": 2.75, "box": [0.5, 0.5, 1.0, 1.0]
    }  # fmt: skip
    assert read["unknown"] == ["velvet"]


def test_a_drawing_has_a_frame_in_the_colour_of_the_words(run, photo, tmp_path):
    found = align(run, photo, "red ball velvet of grass", 0.0)
    draw_alignment(found, tmp_path / "out" / "drawn.png")
    pixels = decode(tmp_path / "out" / "drawn.png").astype(int)
    colours = region_colours(found)
    upper = round(7 * 0.5 * 110)
    assert pixels.shape[1] == 770
    assert pixels.shape[0] > upper
    for region, colour in colours.items():
        places = np.abs(pixels - np.array(colour)).max(-1) < 3
        assert places[upper:].sum() > 50, "the words below"
        if region == 0:
            assert not places[:upper].any(), "the whole picture has no frame"
        else:
            x0, y0, x1, y1 = BOXES[region] * (770, upper, 770, upper)
            y, x = np.nonzero(places[:upper])
            assert (x.min(), x.max()) == pytest.approx((x0, min(x1, 770)), abs=6)
            assert (y.min(), y.max()) == pytest.approx((y0, y1), abs=6)


@pytest.mark.parametrize("size", [(3, 400), (400, 3)])
def test_a_drawing_of_any_shape_with_long_words_and_regions_on_top_of_each_other(size, tmp_path):
    Image.new("RGB", size).save(tmp_path / "thin.png")
    boxes, words = np.tile(BOXES[1], (20, 1)), (*["word"] * 39, "w" * 90)
    labels = np.arange(40) // 2
    scores = np.ones((40, 20), np.float32)
    draw_alignment(Aligned(tmp_path / "thin.png", words, boxes, scores, labels, 1.0), tmp_path / "drawn.png")
    assert decode(tmp_path / "drawn.png").shape[1] == 770


def test_a_drawing_that_cannot_be_made_is_named(run, photo, tmp_path):
    found = align(run, photo, "a ball", 1.0)
    (tmp_path / "file").write_text("")
    with pytest.raises(CapbenchError, match="cannot write"):
        draw_alignment(found, tmp_path / "file" / "drawn.png")
    photo.write_bytes(b"<html>")
    with pytest.raises(CapbenchError, match=r"photo\.png"):
        draw_alignment(found, tmp_path / "drawn.png")


def test_only_a_run_that_aligns_is_taken(run, monkeypatch, tmp_path):
    with pytest.raises(CapbenchError, match="capbench run karpathy"):
        aligner(None, tmp_path)
    assert isinstance(run.model, Aligner)
    assert not isinstance(nn.Linear(2, 2), Aligner)
    other = Fake(Job("vsepp", "vsepp", "scenes", "scenes", 0), None, VOCABULARY, nn.Linear(2, 2), {})
    runs = {"other": other, "own": run}
    monkeypatch.setattr(loaded, "finished_runs", lambda folder: [folder / name for name in runs])
    monkeypatch.setattr(loaded, "load_run", lambda folder: runs[folder.name])
    assert aligner(None, tmp_path) is run
    assert aligner(tmp_path / "own", tmp_path) is run
    with pytest.raises(CapbenchError, match=r"other.*is not a trained alignment model"):
        aligner(tmp_path / "other", tmp_path)


def test_the_command_prints_lines_or_json_and_draws(run, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("capbench.tools.align.aligner", lambda folder, runs: run if folder == Path("mine") else None)
    words = ["align", str(photo), "a red ball", "--run", "mine"]
    app([*words, "--out", str(tmp_path / "drawn.png")], result_action="return_value")
    printed = capsys.readouterr().out
    assert "with karpathy alignment on scenes" in printed
    assert "a red ball  region  1: 10-40 % across" in printed
    assert decode(tmp_path / "drawn.png").shape[1] == 770
    app([*words, "--beta", "0.5", "--json"], result_action="return_value")
    read = json.loads(capsys.readouterr().out)
    assert read["beta"] == 0.5
    assert read["run"].startswith("karpathy alignment")
    assert [one["region"] for one in read["words"]] == [1, 1, 1]
