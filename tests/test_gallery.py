"""Galleries: they show what models and records say, models are asked once, and a run without data is left out."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch import nn

from capbench.base.errors import CapbenchError
from capbench.cli.app import app
from capbench.data.datasets import load_dataset
from capbench.data.scenes import scenes
from capbench.data.vocabulary import Vocabulary
from capbench.evidence.records import add_records, load_arrays, load_results
from capbench.metrics.retrieval import match_ranks
from capbench.runs.job import Job, description
from capbench.runs.loaded import Trained, load_run
from capbench.site.gallery import asking, finding, thumbnails, unseen
from capbench.site.gallery.finding import ALIGNMENT, CAPTIONS, REGIONS, SEARCH, Gallery, galleries
from capbench.site.gallery.shown import Found, Joined, Written
from capbench.site.gallery.strip import draw_strip
from capbench.site.gallery.thumbnails import Thumbnails, caution
from capbench.site.gallery.unseen import Looked, Unseen
from capbench.site.pages import documents
from capbench.tools.align import align_words
from capbench.tools.search import embedded, similarities
from capbench.vision.encoders import Encoder
from capbench.vision.features import features
from tests.made_up import HOSTILE
from tests.own_data import draw
from tests.tiny_runs import FEW, tiny_runs

PICTURES = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tiny_runs(tmp_path_factory.mktemp("gallery"), with_regions=True)


@pytest.fixture(scope="module", autouse=True)
def few(tmp_path_factory):
    """The scenes that the runs were trained on, and a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAPBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(unseen, "load_dataset", lambda name: scenes(seed=5, **FEW))
        yield


@pytest.fixture(scope="module")
def made(runs) -> list[Gallery]:
    reasons: list[str] = []
    found = galleries(runs, runs / "none", PICTURES, reasons.append)
    assert reasons == []
    return found


def one(made, kind, paper=""):
    return next(each for each in made if each.kind is kind and each.job.paper.startswith(paper))


def trained_of(gallery, runs):
    return load_run(runs / gallery.job.paper / gallery.job.name)


def test_each_finished_run_has_a_gallery_of_its_kind(made):
    kinds = {each.job.preset: each.kind for each in made}
    assert kinds == {
        "soft-ours": CAPTIONS, "nic-ours": CAPTIONS, "vsepp-ours": SEARCH, "brnn-ours": ALIGNMENT,
        "rnn-regions-ours": REGIONS,
    }  # fmt: skip


def test_the_captions_are_those_that_were_scored_with_their_own_cider(made, runs):
    gallery = one(made, CAPTIONS, "show_attend")
    arrays = load_arrays(gallery.record, runs / "records")
    best, median, worst, everything = gallery.shown.sections
    entries = [entry for section in gallery.shown.sections for entry in section.entries]
    vocabulary = trained_of(gallery, runs).vocabulary
    for entry in entries:
        assert entry.cider == pytest.approx(arrays["cider"][entry.image], abs=0.01)
        assert entry.captions[0] == " ".join(vocabulary.decode(arrays["captions"][entry.image, 0].tolist()))
        assert entry.recorded is None
        assert list(entry.log_probs) == sorted(entry.log_probs, reverse=True)
    assert best.entries[0].cider == pytest.approx(arrays["cider"].max(), abs=0.01)
    assert worst.entries[0].cider == pytest.approx(arrays["cider"].min(), abs=0.01)
    assert worst.entries[0].cider <= median.entries[0].cider <= best.entries[0].cider
    assert [entry.image for entry in everything.entries] == [0, 6, 13, 19]


def test_each_word_and_the_end_has_a_map_and_a_model_without_attention_has_none(made):
    for entry in one(made, CAPTIONS, "show_attend").shown.common:
        assert isinstance(entry, Written)
        assert len(entry.maps) == len(entry.weights) in (len(entry.captions[0].split()) + 1, 20)
    assert {entry.maps for entry in one(made, CAPTIONS, "show_and").shown.common} == {()}


def test_a_search_ranks_as_the_library_does_and_shows_the_latest_first(made, runs):
    gallery = one(made, SEARCH)
    trained, part = trained_of(gallery, runs), gallery.test.part
    everything = Looked.at(trained, gallery.test).seen(list(range(FEW["test"])))
    sentences = embedded(trained, [trained.vocabulary.encode_text(caption) for caption in part.captions])
    ranks = match_ranks(similarities(trained, everything, sentences).numpy(), part.image_of_caption)
    for entry in (entry for section in gallery.shown.sections for entry in section.entries):
        assert isinstance(entry, Found)
        asked = ranks.image_to_caption[entry.image] if entry.caption is None else ranks.caption_to_image[entry.caption]
        assert entry.rank == 1 + asked  # the library counts from 0
        right = gallery.test.captions_of[entry.image] if entry.caption is None else [entry.image]
        assert (entry.rank <= len(entry.hits)) == bool(set(right) & set(entry.hits))
    assert gallery.shown.sections[0].entries[0].rank == 1 + ranks.caption_to_image.max()
    assert gallery.shown.sections[1].entries[0].rank == 1 + ranks.image_to_caption.max()


def test_an_alignment_counts_the_words_that_lie_on_what_they_name(made):
    gallery = one(made, ALIGNMENT)
    worst, everything = gallery.shown.sections
    part = gallery.test.part
    for entry in (*worst.entries, *everything.entries):
        assert isinstance(entry, Joined)
        phrases = part.phrases[gallery.test.captions_of[entry.image][0]]
        right = 0
        for phrase in phrases:
            for label in entry.labels[phrase.start : phrase.end]:
                x0, y0, x1, y1 = (64 * side for side in entry.boxes[label])
                for a0, b0, a1, b1 in phrase.boxes:
                    shared = max(0, min(x1, a1) - max(x0, a0)) * max(0, min(y1, b1) - max(y0, b0))
                    if shared >= 0.5 * ((x1 - x0) * (y1 - y0) + (a1 - a0) * (b1 - b0) - shared) > 0:
                        right += 1
                        break
        assert entry.right == right
        assert entry.of == sum(phrase.end - phrase.start for phrase in phrases)
    shares = [entry.right / max(entry.of, 1) for entry in worst.entries]
    assert shares == sorted(shares)
    assert shares[0] <= min(entry.right / max(entry.of, 1) for entry in everything.entries)


def test_a_region_is_described_by_what_the_model_writes_about_it_alone(made):
    gallery = one(made, REGIONS)
    for entry in gallery.shown.common:
        true = {tuple(side / 64 for side in box) for box in gallery.test.part.objects[entry.image]}
        assert {tuple(box) for box in entry.boxes} <= {tuple(round(side, 4) for side in box) for box in true}
        assert len(entry.texts) == len(entry.boxes) > 0


def test_models_are_asked_once_for_as_many_pictures(made, runs, monkeypatch):
    def refuse(*_):
        raise AssertionError("asked again")

    monkeypatch.setattr(finding, "load_run", refuse)
    again = galleries(runs, runs / "none", PICTURES, print)
    assert [each.shown for each in again] == [each.shown for each in made]
    with pytest.raises(AssertionError, match="asked again"):
        galleries(runs, runs / "none", PICTURES + 1, print)


def test_a_run_without_data_weights_or_with_other_data_is_left_out_and_the_rest_is_there(runs, tmp_path, monkeypatch):
    copied = tmp_path / "runs"
    shutil.copytree(runs, copied)
    (weights,) = copied.glob("vsepp/*/best.safetensors")
    weights.unlink()
    (broken,) = copied.glob("show_and_tell/*/vocabulary.json")
    broken.write_text("{}")
    (described,) = copied.glob("show_attend_tell/*/run.json")
    document = json.loads(described.read_text())
    described.write_text(json.dumps(document | {"identity": document["identity"] | {"dataset": "0" * 64}}))
    reasons: list[str] = []
    found = galleries(copied, runs / "none", PICTURES, reasons.append)
    assert {each.job.paper for each in found} == {"karpathy"}
    assert any("best.safetensors is missing; train it again" in reason for reason in reasons)
    assert any("its data set scenes has changed since; train it again" in reason for reason in reasons)
    assert any("vocabulary" in reason for reason in reasons)
    assert len(reasons) == 3

    def absent(name):
        raise CapbenchError(f"CAPBENCH_DATA is not set for {name}")

    monkeypatch.setattr(unseen, "load_dataset", absent)
    reasons.clear()
    assert galleries(copied, runs / "none", PICTURES, reasons.append) == []
    assert any("CAPBENCH_DATA is not set" in reason for reason in reasons)


def test_a_record_and_its_gallery_lead_to_each_other(made, runs, tmp_path):
    gallery = one(made, SEARCH)
    add_records([runs / "records" / gallery.record.file], tmp_path / "results")
    files = documents(tmp_path, made)
    (record,) = load_results(tmp_path / "results")
    page = f"records/{Path(record.file).stem}"
    assert f'href="../galleries/{gallery.name}.html"' in files[f"{page}.md"].decode()
    assert f'href="../{page}.html"' in files[f"galleries/{gallery.name}.md"].decode()
    assert "is not on this site" in files[f"galleries/{one(made, ALIGNMENT).name}.md"].decode()
    assert not any(name.startswith("galleries/") or "look" in name for name in documents(tmp_path))


def test_a_page_shows_text_from_outside_as_text(made, tmp_path, runs):
    add_records([runs / "records" / made[0].record.file], tmp_path / "results")
    for gallery in made:
        part = gallery.test.part
        captions = tuple(f"{HOSTILE} {n}" for n in range(len(part.captions)))
        object.__setattr__(part, "captions", captions)
    try:
        files = documents(tmp_path, made)
    finally:
        for gallery in made:
            gallery.test.__dict__.pop("part", None)
    for name, content in files.items():
        if name.startswith("galleries/") and name.endswith((".md", ".js")):
            text = content.decode()
            assert "<script>document" not in text
            assert "<img src=x" not in text
            assert "\u202e" not in text
    page = files[f"galleries/{one(made, SEARCH).name}.md"].decode()
    assert HOSTILE.replace("\u202e", "\ufffd") in unescape(re.sub(r"</?bdi>", "", page))


def test_photographs_are_said_not_to_be_passed_on_and_own_pictures_to_be_there(made):
    test = made[0].test
    assert caution(test) == ""
    other = Unseen(scenes(seed=5, **FEW), test.split)
    object.__setattr__(other.whole, "name", "flickr8k")
    assert "photographs of flickr8k, which may not be passed on" in caution(other)
    object.__setattr__(other.whole, "name", "my own")
    assert "pictures of your data set my own" in caution(other)
    assert Thumbnails().of(other, 0, "whole")[0] == f"galleries/pictures/{thumbnails.file_name('my own')}/00000.webp"


def test_the_strip_shows_three_models_and_names_the_one_that_is_missing(made, tmp_path):
    draw_strip(made, tmp_path / "strip.png")
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.width == 780
    for kind, words in ((CAPTIONS, "show-attend-tell"), (SEARCH, "run vsepp"), (ALIGNMENT, "run karpathy")):
        with pytest.raises(CapbenchError, match=rf"no finished run on scenes for .*; make one with: .*{words}"):
            draw_strip([each for each in made if each.kind is not kind], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_no_galleries_without_pictures_or_runs(runs, tmp_path, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(finding, "galleries", lambda runs, results, pictures, left_out: asked.append(pictures))
    monkeypatch.setattr("capbench.site.build.build", lambda leaderboards, out, shown: shown())
    for words in (["--pictures", "0", "--runs", str(runs)], ["--runs", str(tmp_path)]):
        app(["site", *words], exit_on_error=False, result_action="return_value")
    assert asked == []
    app(["site", "--runs", str(runs)], exit_on_error=False, result_action="return_value")
    assert asked == [24]


def test_common_pictures_are_the_same_for_every_run_and_extremes_are_apart():
    assert asking.common(20, 4) == asking.common(20, 4) == [0, 6, 13, 19]
    groups = asking.extremes(np.array([5.0, 1.0, 3.0]), 2)
    assert groups == {"best": [0], "median": [2], "worst": [1]}


def test_a_recorded_caption_that_differs_is_shown_too(made, runs):
    gallery = one(made, CAPTIONS, "show_attend")
    arrays = load_arrays(gallery.record, runs / "records")
    trained = trained_of(gallery, runs)
    changed = arrays | {"captions": np.full_like(arrays["captions"], 9)}
    shown = asking.written(Looked.at(trained, gallery.test), changed, PICTURES)
    word = trained.vocabulary.decode([9])[0]
    for entry in shown.common:
        assert isinstance(entry, Written)
        assert entry.recorded == " ".join([word] * 20)


def test_the_alignment_is_that_of_the_tool(made, runs):
    gallery = one(made, ALIGNMENT)
    entry = gallery.shown.common[1]
    trained = trained_of(gallery, runs)
    looked = Looked.at(trained, gallery.test)
    caption = gallery.test.part.captions[gallery.test.captions_of[entry.image][0]]
    sentence = trained.read(caption)
    assert looked.boxes is not None
    expected = align_words(
        trained, Path("x"), sentence, looked.regions(entry.image)[None], looked.boxes.array[entry.image]
    )
    assert entry.labels == tuple(expected.labels.tolist())
    assert np.array(entry.scores) == pytest.approx(expected.scores, abs=6e-4)


def test_the_features_that_a_run_learnt_from_are_taken_from_the_store(made, runs, monkeypatch):
    for kind in (SEARCH, ALIGNMENT):
        gallery = one(made, kind)
        trained = trained_of(gallery, runs)
        new = Looked.at(trained, gallery.test)
        with monkeypatch.context() as patch:
            patch.setenv("CAPBENCH_CACHE", str(runs.parent / "cache"))  # where they were trained
            patch.setattr(unseen, "features", lambda *_: pytest.fail("pictures are encoded again"))
            learnt_from = description(runs / gallery.job.paper / gallery.job.name).identity["features"]
            known = Looked.at(trained, gallery.test, learnt_from)
        assert known.array == pytest.approx(new.array, abs=1e-4)
        assert known.boxes is None or known.boxes.array == pytest.approx(new.boxes and new.boxes.array)


def test_a_run_whose_pictures_or_boxes_have_changed_since_is_refused(tmp_path, monkeypatch):
    folder = draw(tmp_path / "squares")
    regions = folder / "regions.json"
    boxes = {path.name: [[0, 0, 30, 40]] for path in (folder / "images").iterdir()}
    regions.write_text(json.dumps(boxes))
    monkeypatch.setenv("CAPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(unseen, "load_dataset", load_dataset)
    data = load_dataset(str(folder))
    learnt = features(data, Encoder("scenes", "regions"), "whole", "file")
    recipe = SimpleNamespace(region_provider="file", output="regions", view="whole")
    job = Job("karpathy", "brnn-file-ours", "squares", "scenes", 0)
    trained = Trained(job, recipe, Vocabulary.build(data.tokens, 1, data.tokenizer), nn.Identity(), {})
    test = Unseen.of(str(folder))
    looked = Looked.at(trained, test, learnt.fingerprint)
    assert learnt.boxes is not None
    assert looked.boxes is not None
    assert np.array_equal(looked.boxes.array, learnt.boxes.array[test.split.image_index])
    regions.write_text(json.dumps(boxes | {"0.png": [[0, 0, 5, 5]]}))
    with pytest.raises(CapbenchError, match=r"^boxes of squares have changed since; train it again"):
        Looked.at(trained, Unseen.of(str(folder)), learnt.fingerprint)
    regions.write_text(json.dumps(boxes))
    Image.new("L", (64, 64)).save(folder / "images" / "0.png")
    with pytest.raises(CapbenchError, match=r"^images of squares have changed since; train it again"):
        Looked.at(trained, Unseen.of(str(folder)), learnt.fingerprint)
