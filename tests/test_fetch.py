"""`capbench datasets fetch` and `check`: from small archives in the published layout to data sets that load."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import sys
import tarfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from PIL import Image

from capbench.base import downloads
from capbench.base.downloads import Remote
from capbench.base.errors import CapbenchError
from capbench.cli import main
from capbench.cli.options import Fetched
from capbench.data import datasets, fetch, published
from capbench.data.captions import CaptionDataset
from capbench.data.checking import check
from capbench.data.coco_captions import read_coco_captions
from capbench.data.datasets import describe, load_dataset
from capbench.data.published import ARCHIVES, REQUESTS, Archive
from capbench.data.scenes import scenes
from tests.servers import Request, Server, serving, status, well


def jpeg(number: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (number, 0, 0)).save(file, "JPEG")
    return file.getvalue()


def split_file(name: str, images: Sequence[tuple[str | None, str, str]]) -> bytes:
    """Karpathy's format: images as (filepath, filename, split)."""
    entries = []
    for number, (folder, file, split) in enumerate(images):
        sentence = {"tokens": ["a", "dog"], "raw": "A dog.", "imgid": number, "sentid": number}
        entry = {"filename": file, "imgid": number, "split": split, "sentids": [number], "sentences": [sentence]}
        entries.append(entry | ({"filepath": folder, "cocoid": number} if folder else {}))
    return json.dumps({"images": entries, "dataset": name}).encode()


COCO = [("train2014", "COCO_train2014_000000000001.jpg", "train")] + [
    ("val2014", f"COCO_val2014_{number:012d}.jpg", split) for number, split in ((2, "restval"), (3, "val"), (4, "test"))
]
FLICKR = [(None, f"{number}_x.jpg", split) for number, split in enumerate(("train", "val", "test"))]
ANNOTATIONS = {
    "images": [{"id": 3, "file_name": COCO[2][1]}],
    "annotations": [{"id": 7, "image_id": 3, "caption": "A dog."}],
}
SPLITS = {
    "dataset_coco.json": split_file("coco", COCO),
    **{f"dataset_{name}.json": split_file(name, FLICKR) for name in ("flickr8k", "flickr30k")},
}
CONTENT: Mapping[str, Mapping[str, bytes]] = {
    "caption_datasets.zip": SPLITS,
    "annotations_trainval2014.zip": {
        f"annotations/{kind}_{split}2014.json": json.dumps(ANNOTATIONS).encode()
        for kind in ("captions", "instances", "person_keypoints")
        for split in ("train", "val")
    },
    "train2014.zip": {f"train2014/{COCO[0][1]}": jpeg()},
    "val2014.zip": {f"val2014/{file}": jpeg() for _, file, _ in COCO[1:]},
    "glove.6B.zip": {f"glove.6B.{size}d.txt": b"dog 0.5 0.25\n" for size in (50, 100, 200, 300)},
}


def zipped(content: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file.getvalue()


PACKED = {name: zipped(content) for name, content in CONTENT.items()}


def library(request: Request) -> None:
    """Serves the small archives under the last part of their published addresses."""
    well(PACKED[request.path.rsplit("/", 1)[1]])(request)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The table of what is published with the small archives in it, at a server of this machine."""
    monkeypatch.setattr(downloads, "PAUSE", 0.001)
    monkeypatch.setattr(os, "sync", lambda: None)
    with serving(library) as server:
        for name, many in ARCHIVES.items():
            monkeypatch.setitem(published.ARCHIVES, name, tuple(at(archive, server) for archive in many))
        for name, images in (("coco", COCO), ("flickr8k", FLICKR), ("flickr30k", FLICKR)):
            counts = {split: sum(split == each for _, _, each in images) for _, _, split in images}
            monkeypatch.setitem(datasets.SOURCES, name, datasets.Source(f"dataset_{name}.json", counts, "asked for"))
        monkeypatch.setenv("CAPBENCH_DATA", str(tmp_path / "data"))
        yield server


def at(archive: Archive, server: Server) -> Archive:
    packed = PACKED[archive.file]
    remote = Remote((f"{server.address}/{archive.file}",), hashlib.sha256(packed).hexdigest(), len(packed))
    files = sum(archive.place(list(archive.places.values()))(name) is not None for name in CONTENT[archive.file])
    return Archive(archive.file, remote, archive.places, files, 1000)


def run(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["capbench", *words])
    monkeypatch.setenv("MPLBACKEND", "agg")
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def files(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {path.relative_to(folder).as_posix() for path in found}


def test_coco_is_fetched_unpacked_found_and_loaded_and_a_second_time_nothing_is_asked(
    small, tmp_path, monkeypatch, capsys
):
    assert run(monkeypatch, "datasets", "fetch", "coco") == 0
    said = capsys.readouterr().out
    folder = tmp_path / "data" / "coco"
    images = {f"images/{folder}/{file}" for folder, file, _ in COCO}
    assert files(folder) == {"dataset_coco.json", "fetched.json", *images, *CONTENT["annotations_trainval2014.zip"]}
    loaded = load_dataset("coco")
    assert (len(loaded.images), loaded.splits) == (4, ("train", "val", "test"))
    assert loaded.images[0].shape == (6, 8, 3)
    assert f"its fingerprint is {loaded.fingerprint}" in said
    monkeypatch.setattr(datasets, "scenes", lambda: scenes(train=1, val=1, test=1))
    assert next(row for row in describe() if row[0] == "coco")[1:4] == ("4", "4", "2 train / 1 val / 1 test")
    val = read_coco_captions(folder / "annotations/captions_val2014.json", folder / "images/val2014", "val")
    assert val.captions == ("A dog.",)
    receipt = json.loads((folder / "fetched.json").read_text())
    for name in ("caption_datasets.zip", "annotations_trainval2014.zip", "train2014.zip", "val2014.zip"):
        digest = hashlib.sha256(PACKED[name]).hexdigest()
        assert receipt[name] == {
            "addresses": [f"{small.address}/{name}"],
            "bytes": len(PACKED[name]),
            "sha256": digest,
        }
        assert digest in said
    asked = len(small.asked)
    assert run(monkeypatch, "datasets", "fetch", "coco") == 0
    assert len(small.asked) == asked == 4
    assert run(monkeypatch, "datasets", "check", "coco") == 0


def test_an_archive_that_lies_there_is_used_without_a_network_and_stays(small, tmp_path, monkeypatch):
    folder = tmp_path / "data" / "coco"
    folder.mkdir(parents=True)
    for name in ("caption_datasets.zip", "annotations_trainval2014.zip", "train2014.zip", "val2014.zip"):
        (folder / name).write_bytes(PACKED[name])
    list(fetch.fetch("coco", tmp_path / "data"))
    assert small.asked == []
    assert (folder / "train2014.zip").read_bytes() == PACKED["train2014.zip"]
    assert len(load_dataset("coco").images) == 4


def test_a_wrong_archive_that_lies_there_is_named_and_not_touched(small, tmp_path):
    archive = tmp_path / "data" / "coco" / "caption_datasets.zip"
    archive.parent.mkdir(parents=True)
    right = PACKED["caption_datasets.zip"]
    for wrong, said in ((b"PK", "has 2 bytes and not"), (right[:-1] + b"x", "has the SHA-256 .* and not")):
        archive.write_bytes(wrong)
        with pytest.raises(CapbenchError, match=f"caption_datasets.zip {said}.*move it away"):
            list(fetch.fetch("coco", tmp_path / "data"))
        assert archive.read_bytes() == wrong


@pytest.mark.fault("no network")
def test_without_a_network_it_is_said_what_to_put_where_and_what_came_is_kept(small, tmp_path):
    steps = fetch.fetch("coco", tmp_path / "data")
    assert "dataset_coco.json: 1 files of caption_datasets.zip" in next(steps)
    small.last = status(503)
    folder = tmp_path / "data" / "coco"
    with pytest.raises(CapbenchError, match=rf"answers 503.*Put annotations_trainval2014\.zip into {folder} and run"):
        next(steps)
    assert files(folder) == {"dataset_coco.json", "fetched.json"}


@pytest.mark.fault("missing images")
def test_what_is_there_is_left_as_it_is_and_an_incomplete_folder_is_named(small, tmp_path):
    mine = tmp_path / "data" / "coco" / "images" / "val2014"
    mine.mkdir(parents=True)
    (mine / COCO[1][1]).write_bytes(b"mine")
    with pytest.raises(CapbenchError, match=r"2 of 4 images are missing.*_000000000003\.jpg.*move what is incomplete"):
        list(fetch.fetch("coco", tmp_path / "data"))
    assert [path.read_bytes() for path in mine.iterdir()] == [b"mine"]


def test_an_archive_with_other_files_than_published_moves_nothing(small, tmp_path, monkeypatch):
    split, annotations, val, train = published.ARCHIVES["coco"]
    fewer = Archive(val.file, val.remote, val.places, val.files + 1, val.unpacked)
    monkeypatch.setitem(published.ARCHIVES, "coco", (split, annotations, fewer, train))
    with pytest.raises(CapbenchError, match=r"val2014\.zip holds 3 files for images/val2014/, not 4"):
        list(fetch.fetch("coco", tmp_path / "data"))
    assert not (tmp_path / "data" / "coco" / "images").exists()


def test_a_disk_without_room_for_all_of_it_is_seen_before_the_first_byte(small, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=4500))  # room for each alone
    with pytest.raises(CapbenchError, match=r"fetching coco needs 0\.00 GB and .*coco has 0\.00 GB free"):
        list(fetch.fetch("coco", tmp_path / "data"))
    assert small.asked == []


@pytest.mark.fault("SIGTERM in a fetch, twice")
def test_what_has_come_needs_no_room_again(small, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(fetch, "check_space", lambda folder, needed, what: asked.append(needed))
    folder = tmp_path / "data" / "coco"
    folder.mkdir(parents=True)
    (folder / "val2014.zip.part").write_bytes(PACKED["val2014.zip"][:100])
    (folder / "train2014.zip").write_bytes(PACKED["train2014.zip"])
    list(fetch.fetch("coco", tmp_path / "data"))
    archives = {archive.file: archive for archive in ARCHIVES["coco"]}
    to_come = {file: archive.remote.size for file, archive in archives.items()} | {"train2014.zip": 0}
    to_come["val2014.zip"] -= 100
    assert asked == [sum(archive.unpacked for archive in archives.values()) + max(to_come.values())]


def test_a_signal_ends_a_fetch_with_75_and_the_same_command_goes_on(small, tmp_path, monkeypatch, capsys):
    def stop(request):
        packed = PACKED["annotations_trainval2014.zip"]
        well(packed, 100)(request)
        time.sleep(0.3)  # the bytes arrive before the signal
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

    small.answers = [library, stop]
    assert run(monkeypatch, "datasets", "fetch", "coco") == 75
    assert "the same command resumes" in capsys.readouterr().err
    folder = tmp_path / "data" / "coco"
    assert (folder / "annotations_trainval2014.zip.part").stat().st_size == 100
    monkeypatch.setattr(os, "sync", lambda: os.kill(os.getpid(), signal.SIGTERM))  # while it is unpacked
    assert run(monkeypatch, "datasets", "fetch", "coco") == 75
    assert [asked for asked in small.ranges if asked] == ["bytes=100-"]
    assert not list(folder.glob(".*.unpacked"))
    assert not (folder / "annotations").exists()
    monkeypatch.setattr(os, "sync", lambda: None)
    assert run(monkeypatch, "datasets", "fetch", "coco") == 0
    assert len(load_dataset("coco").images) == 4


@pytest.mark.parametrize("name", REQUESTS)
def test_for_flickr_the_split_file_comes_and_the_form_is_named(small, name, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "datasets", "fetch", name) == 2
    folder, request = tmp_path / "data" / name, REQUESTS[name]
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"give them to those who ask at {request.form}. Put {request.archives[0]}" in error
    assert f"into {folder}" in error
    assert files(folder) == {f"dataset_{name}.json", "fetched.json"}


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, each in REQUESTS.items() for file in each.archives])
def test_the_photographs_that_the_authors_send_are_unpacked(small, name, file, tmp_path, monkeypatch):
    content = {f"Flicker8k_Dataset/{leaf}": jpeg() for _, leaf, _ in FLICKR}
    content |= {"Flicker8k_Dataset/unnamed.jpg": jpeg(), f"__MACOSX/Flicker8k_Dataset/._{FLICKR[0][1]}": b"x"}
    archive = tmp_path / "data" / name / file
    archive.parent.mkdir(parents=True)
    if file.endswith(".zip"):
        archive.write_bytes(zipped(content))
    else:
        with tarfile.open(archive, "w:gz" if file.endswith("gz") else "w") as tar:
            for leaf, data in content.items():
                info = tarfile.TarInfo(leaf)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    said = list(fetch.fetch(name, tmp_path / "data"))
    assert len(load_dataset(name).images) == 3
    assert {path.name for path in (archive.parent / "images").iterdir()} == {leaf for _, leaf, _ in FLICKR}
    assert any(hashlib.sha256(archive.read_bytes()).hexdigest() in line for line in said)


@pytest.mark.fault("archive that lacks photographs")
def test_an_archive_that_lacks_photographs_lists_them_and_leaves_no_folder(small, tmp_path):
    archive = tmp_path / "data" / "flickr8k" / "Flickr8k_Dataset.zip"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(zipped({f"Flicker8k_Dataset/{FLICKR[0][1]}": jpeg()}))
    with pytest.raises(CapbenchError, match=r"lacks 2 photographs of the split file: 1_x\.jpg, 2_x\.jpg"):
        list(fetch.fetch("flickr8k", tmp_path / "data"))
    assert not (archive.parent / "images").exists()


def test_glove_is_fetched_into_a_folder_of_ones_choice(small, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "datasets", "fetch", "glove", "--to", str(tmp_path / "a b")) == 0
    said = capsys.readouterr().out
    assert f"set CAPBENCH_GLOVE='{tmp_path}/a b/glove/glove.6B.300d.txt'" in said
    assert f"export CAPBENCH_DATA='{tmp_path}/a b'" in said
    assert (tmp_path / "a b" / "glove" / "glove.6B.50d.txt").read_bytes() == b"dog 0.5 0.25\n"


def test_without_a_folder_nothing_is_fetched(monkeypatch, capsys):
    monkeypatch.setenv("CAPBENCH_DATA", "")
    assert run(monkeypatch, "datasets", "fetch", "coco") == 2
    assert "give --to FOLDER, or set CAPBENCH_DATA" in capsys.readouterr().err


@pytest.mark.fault("missing and truncated images")
def test_a_check_finds_what_is_missing_damaged_unnamed_and_not_published(small, tmp_path, monkeypatch, capsys):
    list(fetch.fetch("coco", tmp_path / "data"))
    images = tmp_path / "data" / "coco" / "images"
    (images / "train2014" / COCO[0][1]).unlink()
    (images / "val2014" / COCO[1][1]).write_bytes(jpeg()[:200])
    (images / "val2014" / "another.jpg").write_bytes(jpeg())
    found = check("coco")
    assert found.missing == (f"train2014/{COCO[0][1]}",)
    assert [COCO[1][1] in fault for fault in found.undecodable] == [True]
    assert found.extra == ("val2014/another.jpg",)
    assert (found.decoded, found.differing, found.whole) == (3, "", False)
    assert check("coco", sample=2).decoded == 2
    monkeypatch.setitem(datasets.SOURCES["coco"].counts, "test", 5)
    assert check("coco").differing == "test: 1, published 5"
    assert run(monkeypatch, "datasets", "check", "coco") == 1
    said = capsys.readouterr().out
    for words in ("1 images are missing: train2014/", "3 images decoded, 1 cannot be", "is truncated or damaged"):
        assert words in said
    assert "it is not the published data set: test: 1, published 5" in said


def test_a_data_set_of_ones_own_is_checked_and_the_scenes_have_no_files(tmp_path, monkeypatch):
    (tmp_path / "mine" / "images").mkdir(parents=True)
    (tmp_path / "mine" / "captions.csv").write_text("image,caption,split\na.jpg,A dog.,train\nb.jpg,A cat.,test\n")
    (tmp_path / "mine" / "images" / "a.jpg").write_bytes(jpeg())
    found = check(str(tmp_path / "mine"))
    assert (found.missing, found.decoded, found.differing) == (("b.jpg",), 1, "")
    with pytest.raises(CapbenchError, match="scenes are drawn on the spot"):
        check("scenes")


def test_the_choices_of_the_command_are_those_of_the_table():
    assert set(get_args(Fetched)) == set(ARCHIVES)


def test_the_table_of_what_is_published_has_whole_hashes_sizes_and_https_first():
    for name, archives in ARCHIVES.items():
        for archive in archives:
            remote = archive.remote
            assert len(bytes.fromhex(remote.sha256)) == 32, name
            assert remote.size > 1_000_000
            assert remote.addresses[0].startswith("https://")
            assert all(address.endswith(f"/{archive.file}") for address in remote.addresses)
    images = sum(archive.files for archive in ARCHIVES["coco"] if archive.file in ("train2014.zip", "val2014.zip"))
    assert images == sum(datasets.SOURCES["coco"].counts.values())


@pytest.mark.skipif("CAPBENCH_DATA" not in os.environ, reason="CAPBENCH_DATA is not set")
def test_flickr8k_is_checked():
    if not (Path(os.environ["CAPBENCH_DATA"]) / "flickr8k").is_dir():
        pytest.skip("there is no flickr8k under CAPBENCH_DATA")
    found = check("flickr8k", sample=50)
    assert found.whole
    assert isinstance(found.dataset, CaptionDataset)
    assert found.fingerprint.endswith("as published")
