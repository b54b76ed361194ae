"""Data sets of Hugging Face become folders of one's own: built here, saved on the disk, read offline."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from capbench.base.errors import CapbenchError
from capbench.cli.app import app
from capbench.data.datasets import load_dataset
from tests.own_data import COLOURS

hf = pytest.importorskip("datasets", reason="the extra capbench[hf] is not installed")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def built(columns: dict[str, Any], images: str = "image"):
    return hf.Dataset.from_dict(columns).cast_column(images, hf.Image())


def rows(colours=COLOURS, **more):
    return built({"image": [{"bytes": png(colour)} for colour in colours], **more})


def run(*words: str) -> None:
    app(["datasets", "import", "hf", *words], exit_on_error=False, print_error=False, result_action="return_value")


def test_the_splits_of_a_saved_data_set_become_ours_and_pictures_are_written_as_they_were(here, capsys):
    several = [["A square.", "It's red"], ["Green\nsquare."], ["Blau", "läuft"], ["white"]]
    parts = {
        "train": rows(caption=several),
        "validation": rows(COLOURS[:1], caption=[["x"]]),
        "test": rows(COLOURS[1:2], caption=["y z"]),
    }
    parts["test"] = parts["test"].map(lambda row: {"caption": [row["caption"]]})
    hf.DatasetDict(parts).save_to_disk("saved")
    run("saved", "mine")
    found = load_dataset("mine")
    assert found.captions == ("A square.", "It's red", "Green square.", "Blau", "läuft", "white", "x", "y z")
    assert found.split_of_image == ("train",) * 4 + ("val", "test")
    assert Path("mine/images", found.image_names[2]).read_bytes() == png("blue")
    assert np.array_equal(found.images[0], np.array(Image.new("RGB", (8, 8), "red")))
    printed = capsys.readouterr().out
    assert "mine: 6 images, 8 captions: 4 train / 1 val / 1 test" in printed
    assert "use it with --dataset mine/" in printed
    assert sorted(path.name for path in here.iterdir()) == ["mine", "saved"]


def test_a_jpeg_of_several_pictures_as_phones_take_it_is_a_jpeg(here):
    file, picture = io.BytesIO(), Image.new("RGB", (8, 8), "red")
    picture.save(file, "MPO", save_all=True, append_images=[picture])
    built({"image": [{"bytes": file.getvalue()}], "caption": ["A square."]}).save_to_disk("saved")
    run("saved", "mine", "--split", "train")
    (name,) = load_dataset("mine").image_names
    assert name.endswith(".jpg")
    assert Path("mine/images", name).read_bytes() == file.getvalue()


def test_rows_with_one_caption_each_are_folded_by_their_picture(here):
    colours = [colour for colour in COLOURS for _ in range(2)]
    made = rows(
        colours,
        text=[f"{colour} {n}" for n, colour in enumerate(colours)],
        split=["train"] * 4 + ["val", "val", "test", "test"],
    )
    made.save_to_disk("saved")
    run("saved", "mine")
    found = load_dataset("mine")
    assert found.split_of_image == ("train", "train", "val", "test")
    assert found.captions[2:4] == ("green 2", "green 3")
    assert found.image_of_caption.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_folder_of_parquet_files_is_read_with_columns_and_a_split_of_choice(here):
    Path("files").mkdir()
    columns = {"photo": [{"bytes": png("red")}], "thumb": [{"bytes": png("blue")}], "caption": ["a"], "alt": ["b"]}
    made = built(built(columns, "photo").to_dict(), "photo").cast_column("thumb", hf.Image())
    made.to_parquet("files/part.parquet")
    with pytest.raises(CapbenchError, match=r"columns of images: photo, thumb, .*choose with --image-column"):
        run("files", "mine")
    run("files", "mine", "--image-column", "thumb", "--caption-column", "alt", "--split", "test")
    found = load_dataset("mine")
    assert (found.captions, found.splits) == (("b",), ("test",))
    assert found.images[0][0, 0].tolist() == [0, 0, 255]


REFUSED = {
    "no column of captions": (lambda: rows(words=["a"] * 4), [], "columns of captions: none, among image, words"),
    "two columns of captions": (
        lambda: rows(text=["a"] * 4, caption=["a"] * 4),
        [],
        "caption, text, .*--caption-column",
    ),
    "a column that is not there": (
        lambda: rows(caption=["a"] * 4),
        ["--caption-column", "alt"],
        "no column 'alt'; it has",
    ),
    "no split": (lambda: rows(caption=["a"] * 4), [], "row 0: it names no split; choose one of train.* with --split"),
    "an unknown split": (
        lambda: rows(caption=["a"] * 4, split=["train", "train", "dev", "extra"]),
        [],
        "row 3: its split is 'extra', which is none of train, validation",
    ),
    "an empty caption": (lambda: rows(caption=["a", "b", " ", "d"]), ["--split", "val"], "row 2: its caption is ' '"),
    "a caption that is a number": (lambda: rows(caption=[1, 2, 3, 4]), ["--split", "val"], "row 0: its caption is 1"),
    "no picture": (
        lambda: built({"image": [{"bytes": png("red")}, None], "caption": ["a", "b"]}),
        ["--split", "val"],
        "row 1 has no picture",
    ),
    "a page for a picture": (
        lambda: built({"image": [{"bytes": b"<html>"}], "caption": ["a"]}),
        ["--split", "val"],
        "row 0 is no picture",
    ),
    "both splits": (
        lambda: rows(caption=["a"] * 4),
        ["--split", "val", "--split-column", "x"],
        "give --split, .*not both",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_imported_is_named_by_its_row_or_column_and_nothing_is_written(here, what):
    make, options, message = REFUSED[what]
    make().save_to_disk("saved")
    with pytest.raises(CapbenchError, match=message):
        run("saved", "mine", *options)
    assert [path.name for path in here.iterdir()] == ["saved"]


def test_a_source_that_is_none_and_a_folder_that_is_there_are_refused(here):
    Path("empty").mkdir()
    with pytest.raises(CapbenchError, match="empty holds no data set of Hugging Face"):
        run("empty", "mine")
    with pytest.raises(CapbenchError, match="cannot open the data set nobody/nothing: "):
        run("nobody/nothing", "mine")
    with pytest.raises(CapbenchError, match="empty is there already; name a new folder"):
        run("saved", "empty")
    (here / "damaged").mkdir()
    (here / "damaged" / "state.json").write_text(json.dumps({}))
    with pytest.raises(CapbenchError, match="cannot open the data set damaged"):
        run("damaged", "mine")


def test_without_the_extra_the_command_that_installs_it_is_named(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CapbenchError, match=r"pip install 'capbench\[hf\]'"):
        run("saved", "mine")
