"""The demo's answers with tiny trained runs: what they say, what they refuse, and what they leave behind."""

from __future__ import annotations

import base64
import re
import socket
import sys
import tempfile
from html import unescape
from pathlib import Path

import pytest
from PIL import Image

from capbench.base.errors import CapbenchError
from capbench.data.scenes import scenes
from capbench.demo import markup, models
from capbench.demo.answers import Answers
from capbench.demo.models import ALIGNER, CAPTIONER, EMBEDDING, Models
from capbench.demo.server import SILENT, serve
from capbench.tools.align import align
from capbench.tools.caption import captions_of, samples_of
from capbench.tools.markup import ASSETS
from capbench.tools.pictures import look_at
from capbench.tools.search import images_of_sentence
from tests.tiny_runs import FEW, album, tiny_runs

NASTY = "<script>document.title = 'owned'</script> <img src=x onerror=alert(1)> \u202e {{ 7 * 7 }} ${7 * 7}"
SOFT = "show_attend_tell/soft-ours-scenes-scenes-s0"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tiny_runs(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return album(tmp_path_factory.mktemp("pictures") / "album")


@pytest.fixture
def answers(runs, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("CAPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "load_dataset", lambda name: scenes(seed=5, **FEW))
    (tmp_path / "scratch").mkdir()
    made = Answers(Models(runs, pictures), tmp_path / "scratch")
    assert made.models.refresh() == []
    return made


def run_of(answers, kind, start=""):
    return next(folder for _, folder in answers.models.of(kind) if folder.startswith(start))


def given(path, name=None):
    return {"name": name or path.name, "data": f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"}


def shown(html):
    """The text that a reader sees."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", html)))


def caption(answers, picture, run="show_attend", method="Beam search", beam="", temperature=1.0, seed=0, n_best=2):
    run = run_of(answers, CAPTIONER, run)
    return answers.caption(run, picture, method, beam, temperature, seed, n_best)


def refused(answer):
    assert answer.startswith('<p class="refusal" role="alert">')
    return shown(answer)


def test_the_runs_are_offered_by_what_their_models_can_do(answers):
    assert {folder.partition("/")[0] for _, folder in answers.models.of(CAPTIONER)} == {
        "show_attend_tell",
        "show_and_tell",
    }
    ((name, folder),) = answers.models.of(EMBEDDING)
    assert name.startswith("vsepp-ours, embedding_dim=16")
    assert name.endswith("seed 0, on scenes, scenes")
    assert (answers.models.runs / folder / "run.json").is_file()
    assert len(answers.models.of(ALIGNER)) == 1


def test_captions_are_those_of_the_command_with_their_log_probabilities(answers, pictures):
    answer = caption(answers, given(pictures / "0.png"), beam="4")
    trained = answers.models.get(run_of(answers, CAPTIONER, "show_attend"), CAPTIONER).trained
    (expected,) = captions_of(trained, look_at(trained, pictures / "0.png"), 4, 2)
    for words, log_prob in zip(expected.captions, expected.log_probs, strict=True):
        assert f"log p = {log_prob:.2f}, {log_prob / (len(words.split()) + 1):.2f} a word" in answer
        assert f"<bdi>{words}</bdi>" in answer or not words
    assert "Beam search, width 4" in answer


def test_each_word_has_a_map_and_all_words_one_scale_with_its_name(answers, pictures):
    answer = caption(answers, given(pictures / "0.png"), n_best=1)
    trained = answers.models.get(run_of(answers, CAPTIONER, "show_attend"), CAPTIONER).trained
    width = trained.recipe.beam_size
    (expected,) = captions_of(trained, look_at(trained, pictures / "0.png"), width, 1)
    (attention,) = expected.attention
    assert answer.count("data-light=") == len(attention)
    assert [float(word) for word in re.findall(r'data-highest="([\d.]+)"', answer)] == pytest.approx(
        attention.max(1).tolist(), abs=6e-4
    )
    assert f"<span>{attention.max():.3f}</span>" in answer
    assert "Attention weight of a location" in answer


def test_a_model_without_attention_says_so(answers, pictures):
    answer = caption(answers, given(pictures / "0.png"), "show_and_tell")
    assert "no attention" in answer
    assert "data-light" not in answer


def test_samples_are_drawn_again_with_the_same_seed_and_others_with_another(answers, pictures):
    words = {
        seed: re.findall(r'class="words"><bdi>(.*?)</bdi>', caption(
            answers, given(pictures / "0.png"), method="Sampling", temperature=1.5, seed=seed, n_best=4
        ))
        for seed in (1, 2)
    }  # fmt: skip
    trained = answers.models.get(run_of(answers, CAPTIONER, "show_attend"), CAPTIONER).trained
    (again,) = samples_of(trained, look_at(trained, pictures / "0.png"), 1.5, 4, 1)
    assert words[1] == [line for line in again.captions if line]
    assert words[1] != words[2]


def test_the_pictures_of_a_sentence_come_in_the_order_of_the_command(answers, pictures):
    run, reports = run_of(answers, EMBEDDING), []
    answer = answers.search(run, "a red circle zebra", 3, lambda *report: reports.append(report))
    trained = answers.models.get(run, EMBEDDING).trained
    ranked = images_of_sentence(trained, "a red circle zebra", look_at(trained, pictures), 3)
    assert re.findall(r'alt="(\d\.png)"', answer) == [path.name for path, _ in ranked.pictures]
    assert all(f"similarity {similarity:.3f}" in answer for _, similarity in ranked.pictures)
    assert "The model does not know: zebra." in shown(answer)
    assert reports[-1] == (6, 6)


def test_without_a_folder_the_test_images_are_searched(answers, runs):
    answers.models = Models(runs, None)
    answers.models.refresh()
    answer = answers.search(run_of(answers, EMBEDDING), "a red circle", 50, lambda *_: None)
    assert answer.count("<li>") == FEW["test"]
    assert "The best of the test images of scenes." in shown(answer)


def test_a_picture_finds_captions_of_the_test_split(answers, pictures):
    answer = answers.describe(run_of(answers, EMBEDDING), given(pictures / "1.png"), 5)
    known = set(scenes(seed=5, **FEW).split("test").captions)
    found = re.findall(r'class="words"><bdi>(.*?)</bdi>', answer)
    assert len(found) == 5
    assert set(found) <= known
    similarities = [float(value) for value in re.findall(r"similarity (-?[\d.]+)", answer)]
    assert similarities == sorted(similarities, reverse=True)


def test_words_and_boxes_of_an_alignment_have_one_colour(answers, pictures):
    answer = answers.align(run_of(answers, ALIGNER), given(pictures / "0.png"), "a red circle on snow", "0")
    trained = answers.models.get(run_of(answers, ALIGNER), ALIGNER).trained
    expected = align(trained, pictures / "0.png", "a red circle on snow", 0.0)
    words = re.findall(r'<button type="button" data-region="(\d+)" style="background: (.*?)"><bdi>(.*?)</bdi>', answer)
    assert [(int(region), word) for region, _, word in words] == [
        (int(region), word) for region, word in zip(expected.labels, expected.words, strict=True)
    ]
    strokes = dict(re.findall(r'<g data-region="(\d+)" style="--colour: (.*?)"', answer))
    assert strokes == {region: colour for region, colour, _ in words if region != "0"}
    assert "Affinity: 0." in shown(answer)


def test_each_answer_names_the_model_its_data_and_encoder_and_warns_of_scenes(answers, pictures):
    picture = given(pictures / "0.png")
    for answer in (
        caption(answers, picture),
        answers.search(run_of(answers, EMBEDDING), "a red circle", 2, lambda *_: None),
        answers.align(run_of(answers, ALIGNER), picture, "a red circle", ""),
    ):
        text = shown(answer)
        assert "trained on scenes encoder scenes seed 0" in re.sub(r" +", " ", text)
        assert "This model was trained on scenes: drawn shapes, not photographs." in text


REFUSALS = {
    "no picture": (None, "there is no picture yet: drop one"),
    "html": (b"<html>", "the image holiday.png holds HTML or XML and no picture"),
    "noise": (b"123456", "the image holiday.png is not a picture that can be decoded"),
    "empty": (b"", "the image holiday.png is an empty file"),
}


@pytest.mark.parametrize("content", REFUSALS)
def test_what_is_no_picture_is_refused_by_its_own_name(answers, content):
    data, message = REFUSALS[content]
    encoded = None if data is None else base64.b64encode(data).decode()
    picture = None if data is None else {"name": "holiday.png", "data": f"data:;base64,{encoded}"}
    assert message in refused(caption(answers, picture))
    assert message in refused(answers.describe(run_of(answers, EMBEDDING), picture, 3))
    assert message in refused(answers.align(run_of(answers, ALIGNER), picture, "a red circle", ""))


def test_an_enormous_picture_is_refused(answers, tmp_path, monkeypatch):
    Image.new("1", (10_000, 6_000)).save(tmp_path / "wall.png")
    assert "wall.png has 10000 x 6000 pixels" in refused(caption(answers, given(tmp_path / "wall.png")))
    monkeypatch.setattr("capbench.demo.answers.LARGEST", 10)
    assert "has more than" in refused(caption(answers, given(tmp_path / "wall.png")))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"beam": "wide"}, "the width of the beam is 'wide'; give a number"),
        ({"beam": "0"}, "the width of the beam is 0; give a whole number from 1 to 50"),
        ({"beam": "nan"}, "the width of the beam is nan"),
        ({"beam": "1", "n_best": 2}, "n_best must lie between 1 and the beam size 1"),
        ({"n_best": 0}, "the number of captions is 0"),
        ({"method": "Sampling", "temperature": 0.0}, "temperature must be positive"),
        ({"method": "Sampling", "seed": -1}, "the seed is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(answers, pictures, words, message):
    assert message in refused(caption(answers, given(pictures / "0.png"), **words))


def test_an_empty_or_unknown_sentence_and_an_unknown_run_are_refused(answers, pictures):
    run, aligner, picture = run_of(answers, EMBEDDING), run_of(answers, ALIGNER), given(pictures / "0.png")
    search = lambda sentence, run=run: refused(answers.search(run, sentence, 3, lambda *_: None))  # noqa: E731
    assert "there is no sentence yet: type one" in search(" ")
    assert "knows no word of" in search("Zebra crossing")
    assert "no trained joint embedding" in search("a circle", "../outside")
    assert "no trained joint embedding" in search("a circle", SOFT)
    assert "capbench run vsepp" in search("a circle", None)
    assert "there is no caption yet: type one" in refused(answers.align(aligner, picture, "", ""))
    assert "knows no word of" in refused(answers.align(aligner, picture, "zebra", ""))
    assert "the affinity is -1; give 0 or more" in refused(answers.align(aligner, picture, "a circle", "-1"))


def test_text_from_outside_shows_as_text(answers, pictures):
    run = run_of(answers, EMBEDDING)
    for answer in (
        answers.search(run, f"a circle {NASTY}", 2, lambda *_: None),
        answers.align(run_of(answers, ALIGNER), given(pictures / "0.png"), f"a circle {NASTY}", ""),
        caption(answers, {"name": NASTY, "data": "data:;base64,MTIz"}),
        markup.unusable([NASTY]),
    ):
        assert "<script" not in answer
        assert "<img src=x" not in answer
        assert "\u202e" not in answer


def test_no_upload_and_nothing_of_it_is_kept(answers, pictures, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))  # what else would take a temporary file
    looked_at: list[bool] = []

    def looking(trained, picture, store):
        looked_at.append(picture.exists())
        return look_at(trained, picture, store)

    monkeypatch.setattr("capbench.demo.answers.look_at", looking)
    before = set((tmp_path / "cache").rglob("*"))
    caption(answers, given(pictures / "2.png"))
    answers.align(run_of(answers, ALIGNER), given(pictures / "2.png"), "a red circle", "")
    answers.describe(run_of(answers, EMBEDDING), given(pictures / "2.png"), 3)
    refused(caption(answers, {"name": "bad", "data": "data:;base64,MTIz"}))
    assert looked_at == [True] * 3
    assert [*(tmp_path / "temporary").iterdir(), *(tmp_path / "scratch").iterdir()] == []
    assert set((tmp_path / "cache").rglob("*")) == before


def test_the_last_model_is_kept_and_another_takes_its_place(answers):
    soft, nic = (run_of(answers, CAPTIONER, name) for name in ("show_attend", "show_and"))
    first = answers.models.get(soft, CAPTIONER)
    assert answers.models.get(soft, CAPTIONER) is first
    answers.models.get(nic, CAPTIONER)
    assert answers.models.get(soft, CAPTIONER) is not first


def test_a_run_that_cannot_be_used_is_left_out_with_its_reason(answers, runs, tmp_path):
    broken = tmp_path / "runs" / "vsepp" / "broken"
    broken.mkdir(parents=True)
    (broken / "run.json").write_text("{}")
    other = Models(tmp_path / "runs", None)
    (reason,) = other.refresh()
    assert "is not a finished run" in reason
    assert other.of(EMBEDDING) == []


def test_without_a_finished_run_it_says_which_command_makes_one(tmp_path):
    with pytest.raises(CapbenchError, match=r"no finished run under .*; make one with: capbench run show-attend-tell"):
        serve(tmp_path, None, 0, print)


def test_a_folder_without_a_picture_is_refused(runs, tmp_path):
    with pytest.raises(CapbenchError, match="no picture in"):
        serve(runs, tmp_path, 0, print)


def test_a_port_that_is_taken_is_refused(runs):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CapbenchError, match=rf"cannot listen on port {port}: .*; give another --port, or 0"):
            serve(runs, None, port, print)


def test_without_gradio_it_says_how_to_install_it(runs, monkeypatch):
    for name in (*SILENT, "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")  # restored after the test
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(CapbenchError, match=r"needs gradio: pip install 'capbench\[demo\]'"):
        serve(runs, None, 0, print)


def test_the_assets_name_no_other_host():
    for file in (*Path(markup.__file__).parent.iterdir(), *ASSETS.iterdir()):
        if file.suffix in (".css", ".js", ".html"):
            assert "//" not in re.sub(r"^\s*//.*$|[;{)] // .*$", "", file.read_text("utf-8"), flags=re.M)
