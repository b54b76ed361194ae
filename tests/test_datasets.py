"""Data sets by name: what is said when files are absent, incomplete, or not the published ones."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from capbench.base.errors import CapbenchError
from capbench.data import datasets
from capbench.data.captions import protocol_line
from capbench.data.datasets import departure, describe, is_published, known_fingerprint, load_dataset
from capbench.data.scenes import scenes

PUBLISHED = {"train": 2, "val": 1, "test": 1, "restval": 3}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small COCO with its four splits, and counts that call it the published one."""
    folder = tmp_path / "a b" / "coco"
    (folder / "images" / "val2014").mkdir(parents=True)
    images = []
    for number, split in enumerate(name for name, count in PUBLISHED.items() for _ in range(count)):
        filename = f"COCO_val2014_{number:012d}.jpg"
        Image.new("RGB", (4, 4)).save(folder / "images" / "val2014" / filename)
        sentence = {"tokens": ["a", "dog"], "raw": "A dog.", "imgid": number, "sentid": number}
        images.append(
            {"filepath": "val2014", "filename": filename, "imgid": number, "cocoid": 50 + number, "split": split}
            | {"sentids": [number], "sentences": [sentence]}
        )
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    source = datasets.SOURCES["coco"]
    monkeypatch.setitem(datasets.SOURCES, "coco", datasets.Source(source.split_file, PUBLISHED, source.origin))
    return tmp_path / "a b"


def sizes(found) -> dict[str, int]:
    return {name: len(found.split(name).image_index) for name in found.splits}


def test_the_published_split_loads_without_a_warning(data, monkeypatch):
    monkeypatch.setenv("CAPBENCH_DATA", str(data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sizes(load_dataset("coco")) == {"train": 5, "val": 1, "test": 1}
        assert sizes(load_dataset("coco-norestval", data)) == {"train": 2, "val": 1, "test": 1}
    assert load_dataset("coco").images[0].shape == (4, 4, 3)


def test_restval_stands_in_the_protocol(data):
    assert protocol_line(load_dataset("coco", data).split("test")) == (
        "1 image, 1 caption (1 each); 3 restval images in train"
    )
    assert load_dataset("coco-norestval", data).notes == ("3 restval images left out",)


@pytest.mark.fault("counts of a split that differ from the published ones")
@pytest.mark.parametrize("name", ["coco", "coco-norestval"])
def test_counts_that_differ_from_the_published_ones_warn_and_stand_in_the_protocol(data, name):
    path = data / "coco" / "dataset_coco.json"
    content = json.loads(path.read_text())
    content["images"] = [image for image in content["images"] if image["split"] != "test"]
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=rf"{name} is not the published split \(test: 0, published 1\)"):
        found = load_dataset(name, data)
    assert protocol_line(found.split("val")).endswith("; not the published split (test: 0, published 1)")


@pytest.mark.parametrize("name", ["coco", "coco-norestval"])
def test_a_data_set_is_published_as_long_as_its_counts_are(data, name, monkeypatch):
    found = load_dataset(name, data)
    assert is_published(found) is True
    monkeypatch.setitem(PUBLISHED, "test", 15)
    assert is_published(found) is False
    assert departure(found) == "test: 1, published 15"


def test_where_the_published_fingerprint_is_known_other_captions_are_not_published(data, monkeypatch):
    found = load_dataset("coco", data)
    source = replace(datasets.SOURCES["coco"], fingerprint=found.fingerprint)
    monkeypatch.setitem(datasets.SOURCES, "coco", source)
    assert is_published(load_dataset("coco", data)) is True
    path = data / "coco" / "dataset_coco.json"
    path.write_text(path.read_text().replace("A dog.", "A cat."))
    with pytest.warns(UserWarning, match=r"coco is not the published split \(its names, ids, captions or tokens"):
        other = load_dataset("coco", data)
    assert is_published(other) is False
    assert "not the published split (its names" in protocol_line(other.split("test"))


def test_the_scenes_are_known_by_their_fingerprint_and_published_nowhere():
    assert is_published(scenes(train=4, val=2, test=3)) is None
    assert known_fingerprint("scenes") == load_dataset("scenes").fingerprint, "scenes have changed: pin them anew"
    assert known_fingerprint("coco") == known_fingerprint("elsewhere") == ""


@pytest.mark.fault("missing images")
def test_all_missing_images_are_listed_up_front_with_the_place_for_them(data):
    folder = data / "coco" / "images" / "val2014"
    for number in (1, 4):
        (folder / f"COCO_val2014_{number:012d}.jpg").unlink()
    with pytest.raises(
        CapbenchError, match=r"2 of 7 images are missing.*0001\.jpg, .*0004\.jpg.*train2014 and val2014"
    ):
        load_dataset("coco", data)


def test_an_image_folder_that_is_not_there_is_named(data):
    (data / "coco" / "images").rename(data / "coco" / "pictures")
    with pytest.raises(CapbenchError, match=r"no image folder .*images; .*put dataset_coco.json and images/ into"):
        load_dataset("coco", data)


@pytest.mark.parametrize("name", ["flickr8k", "flickr30k", "coco"])
def test_a_missing_split_file_says_where_to_get_it_and_where_to_put_it(tmp_path, name):
    with pytest.raises(CapbenchError) as caught:
        load_dataset(name, tmp_path)
    message = str(caught.value)
    assert f"{tmp_path / name / f'dataset_{name}.json'} is missing" in message
    assert f"put dataset_{name}.json and images/ into {tmp_path / name}" in message
    assert "caption_datasets.zip" in message


@pytest.mark.parametrize("value", [None, ""])
def test_without_capbench_data_the_message_names_it(monkeypatch, value):
    monkeypatch.delenv("CAPBENCH_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("CAPBENCH_DATA", value)
    with pytest.raises(CapbenchError, match="CAPBENCH_DATA is not set; set it to a folder with flickr8k/ in it"):
        load_dataset("flickr8k")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(CapbenchError, match=r"no data set 'mnist'; there are scenes, flickr8k, .*, and any folder"):
        load_dataset("mnist")


def test_the_published_counts_are_those_of_the_papers():
    counts = {name: dict(source.counts) for name, source in datasets.SOURCES.items()}
    assert counts == {
        "flickr8k": {"train": 6000, "val": 1000, "test": 1000},
        "flickr30k": {"train": 29000, "val": 1014, "test": 1000},
        "coco": {"train": 82783, "val": 5000, "test": 5000, "restval": 30504},
    }


def test_describe_has_a_row_for_each_data_set_present_or_not(data, monkeypatch):
    monkeypatch.setattr(datasets, "scenes", lambda: scenes(train=4, val=2, test=3))
    rows = {row[0]: row[1:] for row in describe(data)}
    assert list(rows) == ["scenes", "flickr8k", "flickr30k", "coco", "coco-norestval"]
    assert rows["scenes"] == ("9", "45", "4 train / 2 val / 3 test", "drawn on the spot")
    assert rows["coco"] == ("7", "7", "5 train / 1 val / 1 test", str(data / "coco"))
    assert rows["coco-norestval"] == ("4", "4", "2 train / 1 val / 1 test", str(data / "coco"))
    assert rows["flickr30k"][:3] == ("-", "-", "-")
    assert "dataset_flickr30k.json is missing" in rows["flickr30k"][3]


@pytest.mark.skipif("CAPBENCH_DATA" not in os.environ, reason="CAPBENCH_DATA is not set")
def test_flickr8k_loads_as_published():
    if not (Path(os.environ["CAPBENCH_DATA"]) / "flickr8k").is_dir():
        pytest.skip("there is no flickr8k under CAPBENCH_DATA")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_dataset("flickr8k")
    assert sizes(found) == {"train": 6000, "val": 1000, "test": 1000}
    assert protocol_line(found.split("test")) == "1,000 images, 5,000 captions (5 each)"
    assert is_published(found) is True
    assert found.fingerprint == known_fingerprint("flickr8k")
