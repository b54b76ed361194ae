"""Search with a trained joint embedding, against scores worked out one pair at a time."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from capbench.base.errors import CapbenchError
from capbench.cli import tools as command
from capbench.data.images import whole_image
from capbench.data.picture_folder import pictures_in
from capbench.data.scenes import scenes
from capbench.runs import harness, loaded
from capbench.runs.harness import Places
from capbench.runs.job import Job
from capbench.runs.materials import Materials
from capbench.runs.paper import paper
from capbench.tools import search
from capbench.tools.drawing import TILE, check_drawable, draw_sheet
from capbench.tools.pictures import look_at
from capbench.vision.encoders import Encoder


@pytest.fixture(scope="module")
def small():
    return scenes(seed=5, train=60, val=15, test=20)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small):
    """The folder of one finished run on a few scenes."""
    original, folder = paper("vsepp"), tmp_path_factory.mktemp("search")

    def tiny(dataset):
        recipe: Any = original.presets("scenes")["vsepp-ours"]
        return {
            "vsepp-ours": replace(recipe, embedding_dim=16, word_dim=8, training=replace(recipe.training, epochs=2))
        }

    with pytest.MonkeyPatch.context() as patch:
        for module in (harness, loaded):
            patch.setattr(module, "paper", lambda name: replace(original, presets=tiny))
        patch.setattr("capbench.runs.materials.load_dataset", lambda name: small)
        patch.setenv("CAPBENCH_CACHE", str(folder / "cache"))
        job = Job("vsepp", "vsepp-ours", "scenes", "scenes", 0)
        harness.run(job, Places(folder / "runs"), Materials(), lambda *_: None)
        yield folder / "runs"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, small):
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "below").mkdir()
    for i in range(4):
        Image.fromarray(small.images[i]).save(folder / ("below" if i == 3 else "") / f"{i}.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def score(run, pixels, sentence):
    phi = Encoder("scenes")(whole_image(pixels, 64)[None])
    ids = torch.tensor([run.vocabulary.encode(sentence.split())])
    image, caption = run.model.embed_images(phi), run.model.embed_captions(ids, torch.tensor([ids.shape[1]]))
    return float(run.model.similarity(image, caption).detach())


def test_images_come_in_the_order_of_their_similarity_to_the_sentence(runs, pictures):
    run = search.retriever(None, runs)
    ranked = search.images_of_sentence(run, "A red circle!", look_at(run, pictures), 3)
    paths = sorted(pictures.rglob("*.png"))
    expected = sorted(((score(run, np.array(Image.open(p)), "a red circle"), p) for p in paths), reverse=True)
    assert [path for path, _ in ranked.pictures] == [path for _, path in expected[:3]]
    assert [value for _, value in ranked.pictures] == pytest.approx([value for value, _ in expected[:3]], abs=1e-5)
    assert ranked.unknown == ()


def test_captions_come_in_the_order_of_their_similarity_to_the_image(runs, pictures, tmp_path):
    run = search.retriever(None, runs)
    lines = ["a red circle", "two blue squares", "a small star above a heart"]
    (tmp_path / "captions.txt").write_text("\ufeff" + "\n\n".join(lines) + "\n...\nzebra\n")
    captions = search.candidates(run, search.lines_of(tmp_path / "captions.txt"), "captions.txt")
    ranked = search.captions_of_image(run, look_at(run, pictures / "0.png"), captions, 10)
    scores = {line: score(run, np.array(Image.open(pictures / "0.png")), line) for line in lines}
    assert [line for line, _ in ranked.captions] == sorted(lines, key=lambda line: -scores[line])
    assert ranked.unknown == ("squares", "zebra")


@pytest.mark.fault("broken pictures and strangers in a folder")
def test_a_folder_is_encoded_once_whatever_its_name_and_what_is_no_picture_is_passed_over(
    runs, pictures, tmp_path, monkeypatch, capsys
):
    run, folder = search.retriever(None, runs), tmp_path / "album"
    shutil.copytree(pictures, folder)
    first = look_at(run, folder).features().numpy()
    (folder / "page.jpg").write_bytes(b"<html>")
    (folder / "._0.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "folder.jpg").mkdir()
    (folder / "gone.webp").symlink_to("nowhere")
    seen = look_at(run, folder)
    assert [path.name for path in seen.paths] == ["0.png", "1.png", "2.png", "3.png"]
    assert [path.name for path in seen.passed_over] == ["._0.png", "folder.jpg", "gone.webp", "page.jpg"]
    assert np.array_equal(seen.features().numpy(), first)
    assert np.array_equal(seen.features(1, 3).numpy(), first[1:3])
    assert "features of the pictures" in capsys.readouterr().err
    monkeypatch.setattr("capbench.vision.extraction.encode", lambda *_: pytest.fail("a picture was encoded again"))
    folder.rename(tmp_path / "moved")
    assert np.array_equal(look_at(run, tmp_path / "moved").features().numpy(), first)


def test_pictures_of_every_known_kind_are_looked_for(tmp_path):
    for suffix in ("jpg", "JPEG", "png", "gif", "bmp", "webp", "tif", "tiff"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{suffix}.{suffix}")
    assert len(pictures_in(tmp_path)[0]) == 8


@pytest.mark.fault("missing folder")
def test_a_folder_that_is_missing_or_holds_no_picture_is_refused(runs, tmp_path):
    run = search.retriever(None, runs)
    with pytest.raises(CapbenchError, match=r"no such folder.*nowhere"):
        look_at(run, tmp_path / "nowhere")
    with pytest.raises(CapbenchError, match=r"no such folder: .*nowhere"):
        pictures_in(tmp_path / "nowhere")
    with pytest.raises(CapbenchError, match=r"no picture in .*looked for .*tif"):
        look_at(run, tmp_path)
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    for place in (tmp_path, tmp_path / "page.jpg"):
        with pytest.raises(CapbenchError, match=r"no image of the pictures could be decoded|page\.jpg holds HTML"):
            look_at(run, place)


@pytest.mark.fault("query without a known word")
def test_queries_without_a_known_word_and_tops_below_1_are_refused_and_unknown_words_are_told(runs, pictures, tmp_path):
    run = search.retriever(None, runs)
    seen = look_at(run, pictures)
    assert search.images_of_sentence(run, "a zebra and a red Zebra", seen, 9).unknown == ("zebra",)
    with pytest.raises(CapbenchError, match=r"vsepp-ours on scenes.* knows no word of 'Zebra crossing'"):
        search.images_of_sentence(run, "Zebra crossing", seen, 3)
    with pytest.raises(CapbenchError, match="no word with a letter from a to z or a digit"):
        search.images_of_sentence(run, "...", seen, 3)
    for top in (0, -1):
        with pytest.raises(CapbenchError, match=f"top is {top}; ask for at least 1"):
            search.images_of_sentence(run, "a circle", seen, top)
    for content in ("\n", "zebra\n"):
        (tmp_path / "empty.txt").write_text(content)
        with pytest.raises(CapbenchError, match=r"empty\.txt holds no caption with a word"):
            search.candidates(run, search.lines_of(tmp_path / "empty.txt"), "empty.txt")


def test_a_run_on_scenes_says_that_it_has_never_seen_a_photograph(runs):
    run = search.retriever(None, runs)
    assert str(run).endswith("seed 0; trained on scenes: drawn shapes, not photographs")
    assert "scenes:" not in str(replace(run, job=replace(run.job, dataset="flickr8k")))


def test_a_sheet_is_a_grid_of_the_pictures_with_labels_below(tmp_path):
    colours = [(200, 0, 0), (0, 150, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, colour in zip(paths, colours, strict=True):
        Image.new("RGB", (50, 25), colour).save(path)
    draw_sheet(paths, ["short", "words " * 20, "", "$x$", "last"], tmp_path / "sheet.png")
    pixels = np.array(Image.open(tmp_path / "sheet.png")).astype(int)
    places = []
    for colour in colours:
        y, x = np.nonzero(np.all(pixels == colour, -1))
        assert (x.max() - x.min() + 1, y.max() - y.min() + 1) == (TILE, TILE // 2)
        places.append((y.min(), x.min()))
    tops, lefts = zip(*places, strict=True)
    assert len(set(tops[:4])) == 1
    assert sorted(lefts[:4]) == list(lefts[:4])
    assert tops[4] > tops[0] + TILE // 2
    assert lefts[4] == lefts[0]
    text = np.all(pixels < 60, -1)
    below = text[tops[0] + TILE // 2 : tops[4]]
    assert below[:, lefts[0] : lefts[0] + TILE].any()
    assert below[:, lefts[1] : lefts[1] + TILE].sum() > 5 * below[:, lefts[0] : lefts[0] + TILE].sum()
    assert not below[:, lefts[2] : lefts[2] + TILE].any()
    assert text[:, : lefts[0]].sum() == 0


@pytest.mark.parametrize(
    ("name", "format"), [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a.webp", "WEBP")]
)
def test_a_drawing_has_the_format_of_its_name(pictures, tmp_path, name, format):
    draw_sheet([pictures / "0.png"], ["zero"], tmp_path / name)
    with Image.open(tmp_path / name) as drawn:
        assert drawn.format == format


@pytest.mark.parametrize("name", ["a.svg", "a", "a.pdf"])
def test_a_drawing_of_an_unknown_format_is_refused_before_the_work(name):
    check_drawable(None)
    with pytest.raises(CapbenchError, match=rf"cannot draw {name}: name a file that ends in \.png, \.jpg"):
        check_drawable(Path(name))


def test_a_sheet_holds_200_pictures_at_most(pictures, tmp_path):
    draw_sheet([pictures / "0.png"] * 200, ["label"] * 200, tmp_path / "sheet.webp")
    with pytest.raises(CapbenchError, match="1 to 200 pictures, not 201"):
        draw_sheet([pictures / "0.png"] * 201, ["label"] * 201, tmp_path / "sheet.png")


def test_without_a_trained_run_it_says_how_to_make_one(tmp_path):
    with pytest.raises(CapbenchError, match="capbench run vsepp"):
        search.retriever(None, tmp_path)


@pytest.mark.fault("file name that is not UTF-8")
def test_the_command_prints_names_that_are_not_utf8_and_draws(runs, pictures, tmp_path, capsys):
    folder = tmp_path / "album"
    shutil.copytree(pictures, folder)
    (folder / "0.png").rename(folder / os.fsdecode(b"caf\xe9.png"))
    (folder / "page.jpg").write_bytes(b"<html>")
    command.search("a red circle, zebra", images=folder, runs=runs, sheet=tmp_path / "sheet.jpg")
    printed = capsys.readouterr().out
    assert "trained on scenes: drawn shapes, not photographs" in printed
    assert "caf\\xe9.png\n" in printed
    assert "not in the vocabulary: zebra\n" in printed
    assert "page.jpg\n" in printed.partition("passed over: ")[2]
    with Image.open(tmp_path / "sheet.jpg") as drawn:
        assert drawn.format == "JPEG"
