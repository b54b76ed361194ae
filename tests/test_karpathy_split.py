"""Split files in their exact formats, and each fault that one can have."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from capbench.base.errors import CapbenchError
from capbench.data.captions import CaptionDataset, protocol_line
from capbench.data.karpathy_split import read_karpathy_split
from capbench.data.tokenizers import tokenize
from capbench.data.vocabulary import Vocabulary


def image(number: int, split: str, raws: list[str], first: int, **more) -> dict[str, Any]:
    """An entry as Flickr's files have it; `more` are COCO's fields."""
    ids = list(range(first, first + len(raws)))
    return {
        "sentids": ids,
        "imgid": number,
        "sentences": [
            {"tokens": tokenize(raw), "raw": raw, "imgid": number, "sentid": sentid}
            for raw, sentid in zip(raws, ids, strict=True)
        ],
        "split": split,
        "filename": f"{1000 + number}.jpg",
        **more,
    }


def flickr30k() -> dict[str, Any]:
    images = [
        image(0, "train", [f"A dog runs {i} ." for i in range(5)], 0),
        image(1, "test", [f"A cat sits {i} ." for i in range(5)], 5),
        image(2, "val", [f"A man stands {i} ." for i in range(5)], 10),
        image(3, "test", [f"A boy jumps {i} ." for i in range(5)], 15),
    ]
    return {"images": images, "dataset": "flickr30k"}


def coco() -> dict[str, Any]:
    def entry(number, split, cocoid, folder, captions):
        name = f"COCO_{folder}_{cocoid:012d}.jpg"
        raws = [f"Caption {i} of {cocoid}." for i in range(captions)]
        return image(number, split, raws, 100 * number, filepath=folder, filename=name, cocoid=cocoid)

    images = [
        entry(0, "test", 391895, "val2014", 5),
        entry(1, "restval", 522418, "val2014", 6),
        entry(2, "val", 184613, "val2014", 5),
        entry(3, "train", 9, "train2014", 7),
    ]
    return {"images": images, "dataset": "coco"}


def read(folder: Path, content: dict[str, Any] | str | bytes, restval="train") -> CaptionDataset:
    path = folder / "split.json"
    text = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_karpathy_split(path, folder / "images", "small", restval)


def test_a_flickr_file_keeps_its_order_its_tokens_and_its_ids(tmp_path):
    found = read(tmp_path, flickr30k())
    assert found.image_names == ("1000.jpg", "1001.jpg", "1002.jpg", "1003.jpg")
    assert found.image_ids == (0, 1, 2, 3)
    assert found.split_of_image == ("train", "test", "val", "test")
    assert found.captions[6] == "A cat sits 1 ."
    assert found.tokens[6] == ("a", "cat", "sits", "1")
    assert found.caption_ids == tuple(range(20))
    assert found.image_of_caption.tolist() == [i // 5 for i in range(20)]
    assert found.notes == ()
    assert protocol_line(found.split("test")) == "2 images, 10 captions (5 each)"
    assert found.split("test").captions[5] == "A boy jumps 0 ."


def test_a_coco_image_lies_in_its_folder_and_has_its_coco_id(tmp_path):
    found = read(tmp_path, coco())
    assert found.image_names[0] == "val2014/COCO_val2014_000000391895.jpg"
    assert found.image_names[3] == "train2014/COCO_train2014_000000000009.jpg"
    assert found.image_ids == (391895, 522418, 184613, 9)


@pytest.mark.fault("images in the split restval")
def test_restval_trains_is_dropped_or_is_refused_as_told(tmp_path):
    added = read(tmp_path, coco(), "train")
    assert added.split_of_image == ("test", "train", "val", "train")
    line = protocol_line(added.split("train"))
    assert line == "2 images, 13 captions (6 to 7 each, mean 6.5); 1 restval images in train"
    dropped = read(tmp_path, coco(), "drop")
    assert dropped.image_ids == (391895, 184613, 9)
    assert dropped.split("train").captions == tuple(f"Caption {i} of 9." for i in range(7))
    assert dropped.notes == ("1 restval images left out",)
    assert added.fingerprint != dropped.fingerprint
    with pytest.raises(CapbenchError, match=r"choose restval='train'.*or restval='drop'"):
        read(tmp_path, coco(), "error")


def test_an_unknown_policy_for_restval_is_refused(tmp_path):
    with pytest.raises(Exception, match="restval"):  # by the type check or by the reader itself
        read(tmp_path, coco(), "test")


@pytest.mark.fault("uneven, empty and wordless captions")
def test_uneven_empty_and_wordless_captions_are_kept_and_counted(tmp_path):
    content = flickr30k()
    content["images"][1]["sentences"] = image(1, "test", ["", "...", "A cat ."], 5)["sentences"]
    content["images"][1]["sentids"] = [5, 6, 7]
    found = read(tmp_path, content)
    part = found.split("test")
    assert part.captions[:3] == ("", "...", "A cat .")
    assert protocol_line(part) == "2 images, 8 captions (3 to 5 each, mean 4.0), 2 of them without a word"


def test_an_image_without_a_caption_is_named(tmp_path):
    content = flickr30k()
    content["images"][2] |= {"sentences": [], "sentids": []}
    with pytest.raises(CapbenchError, match=r"split\.json: .*without a caption: '1002\.jpg'"):
        read(tmp_path, content)


@pytest.mark.fault("line break of any kind in a caption")
@pytest.mark.parametrize("mark", ["\r", "\n", "\r\n", "\v", "\f", "\x85", "\u2028", "\u2029"])
def test_a_line_break_in_a_caption_moves_no_later_caption(tmp_path, mark):
    content = flickr30k()
    sentence = content["images"][0]["sentences"][1]
    sentence["raw"], sentence["tokens"] = f"A dog{mark}runs", ["a", f"dog{mark}runs"]
    found = read(tmp_path, content)
    assert "\n".join(found.captions).splitlines() == list(found.captions)
    assert found.captions[1] == "A dog runs"
    assert found.tokens[1] == ("a", "dog", "runs")
    assert found.captions[2] == "A dog runs 2 ."


@pytest.mark.fault("lone surrogate, emoji, three bars in a caption")
def test_a_lone_surrogate_an_emoji_and_bars_neither_stop_nor_shift(tmp_path):
    content = flickr30k()
    for sentence, raw in zip(content["images"][0]["sentences"], ["\ud83d x", "\U0001f600", "a ||| b"], strict=False):
        sentence["raw"], sentence["tokens"] = raw, raw.split()
    found = read(tmp_path, content)
    assert found.captions[:4] == ("\ufffd x", "\U0001f600", "a ||| b", "A dog runs 3 .")
    assert found.tokens[:3] == (("\ufffd", "x"), ("\U0001f600",), ("a", "|||", "b"))
    found.fingerprint.encode()
    assert "\U0001f600" in Vocabulary.build(found.tokens, 1).words


@pytest.mark.fault("byte order mark")
def test_a_byte_order_mark_is_no_fault(tmp_path):
    assert read(tmp_path, b"\xef\xbb\xbf" + json.dumps(coco()).encode()).image_ids[0] == 391895


@pytest.mark.fault("truncated split file")
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file_says_so_with_its_line(tmp_path, share):
    text = json.dumps(flickr30k(), indent=1)
    with pytest.raises(CapbenchError, match=r"split\.json, line \d+, column \d+: malformed JSON.*ends too early"):
        read(tmp_path, text[: int(len(text) * share)])


@pytest.mark.fault("malformed split file")
def test_malformed_json_is_named_by_line(tmp_path):
    text = json.dumps(flickr30k(), indent=1).replace('"imgid": 2,', '"imgid": 2', 1)
    line = text[: text.index('"imgid": 2')].count("\n") + 2
    with pytest.raises(CapbenchError, match=rf"split\.json, line {line}, column \d+: malformed JSON: Expecting ','"):
        read(tmp_path, text)


@pytest.mark.fault("endless nesting in JSON")
def test_json_that_is_nested_without_end_is_refused(tmp_path):
    with pytest.raises(CapbenchError, match=r"split\.json"):
        read(tmp_path, "[" * 200_000)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CapbenchError, match=r"gone\.json: No such file"):
        read_karpathy_split(tmp_path / "gone.json", tmp_path, "small", "train")


@pytest.mark.fault("bytes that are not UTF-8")
def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path):
    content = json.dumps(flickr30k(), indent=1).encode().replace(b"A cat sits 0", b"A caf\xe9", 1)
    with pytest.raises(CapbenchError, match=r"split\.json, line \d+: not UTF-8"):
        read(tmp_path, content)


def damaged(number: int, **fields) -> dict[str, Any]:
    content = coco()
    content["images"][number] |= fields
    return content


@pytest.mark.fault("malformed split file")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "images: Field required"),
        ({"images": []}, ".*no images"),
        ({"images": {}}, "images: Input should be a valid list"),
        (damaged(2, split="holdout"), r"images\[2\]\.split: .*'restval'.*holdout"),
        (damaged(1, imgid="1"), r"images\[1\]\.imgid: Input should be a valid integer"),
        (damaged(1, imgid=True), r"images\[1\]\.imgid: Input should be a valid integer"),
        (damaged(1, filename=None), r"images\[1\]\.filename"),
        (damaged(0, filepath="../../etc"), r"images\[0\]\.filepath: it is no relative path inside the folder.*etc"),
        (damaged(0, filepath="/etc"), r"images\[0\]\.filepath: it is no relative path"),
        (damaged(0, filename="../x.jpg"), r"images\[0\]\.filename: it is no relative path"),
        (damaged(0, filename="..\\x.jpg"), r"images\[0\]\.filename: it is no relative path"),
        (damaged(3, cocoid=184613), ".*image ids given twice: 184613"),
        (damaged(3, sentids=[300]), r"images\[3\]: imgid 3 lists the sentids"),
        (damaged(3, sentences=[{"tokens": ["a", 1], "raw": "a", "sentid": 1}]), r"images\[3\]\.sentences\[0\]\.tokens"),
        (damaged(3, sentences=[{"tokens": "a b", "raw": "a", "sentid": 1}]), r".*sentences\[0\]\.tokens: .*valid list"),
        (damaged(3, sentences=[{"tokens": [], "sentid": 1}]), r"images\[3\]\.sentences\[0\]\.raw: Field required"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, content, message):
    with pytest.raises(CapbenchError, match=rf"split\.json: {message}"):
        read(tmp_path, content)


@pytest.mark.fault("duplicate imgid or sentid")
@pytest.mark.parametrize("restval", ["train", "drop"])
def test_a_duplicate_imgid_is_refused_although_the_coco_ids_differ(tmp_path, restval):
    content = coco()
    content["images"][1]["imgid"] = 0
    for sentence in content["images"][1]["sentences"]:
        sentence["imgid"] = 0
    with pytest.raises(CapbenchError, match="imgid 0 is given twice"):
        read(tmp_path, content, restval)


@pytest.mark.fault("duplicate imgid or sentid")
def test_a_duplicate_sentid_is_refused(tmp_path):
    content = coco()
    content["images"][3]["sentences"][0]["sentid"] = content["images"][3]["sentids"][0] = 0
    with pytest.raises(CapbenchError, match="sentid 0 is given twice"):
        read(tmp_path, content)


def test_a_sentence_of_another_image_is_refused(tmp_path):
    content = coco()
    content["images"][3]["sentences"][2]["imgid"] = 1
    with pytest.raises(CapbenchError, match=r"images\[3\]: imgid 3 holds sentid 302, which says imgid 1"):
        read(tmp_path, content)


@pytest.mark.fault("image in two splits")
@pytest.mark.parametrize("restval", ["train", "drop"])
@pytest.mark.parametrize("number", [0, 1])
def test_an_image_in_two_splits_is_refused_whatever_becomes_of_restval(tmp_path, restval, number):
    content = coco()
    again = copy.deepcopy(content["images"][number])
    again |= {"imgid": 9, "split": "train", "cocoid": 77, "sentids": [900]}
    again["sentences"] = [again["sentences"][0] | {"imgid": 9, "sentid": 900}]
    content["images"].append(again)
    name = again["filename"]
    with pytest.raises(CapbenchError, match=f"{name}.*(two splits|twice)|twice.*{name}"):
        read(tmp_path, content, restval)


def test_all_missing_images_are_listed_up_front(tmp_path):
    found = read(tmp_path, flickr30k())
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "1001.jpg")
    with pytest.raises(CapbenchError, match=r"3 of 4 images are missing.*1000\.jpg, 1002\.jpg, 1003\.jpg"):
        found.images.check()


@pytest.mark.skipif("CAPBENCH_DATA" not in os.environ, reason="CAPBENCH_DATA is not set")
def test_flickr8k_is_as_published():
    folder = Path(os.environ["CAPBENCH_DATA"]) / "flickr8k"
    if not (folder / "dataset_flickr8k.json").is_file():
        pytest.skip(f"there is no {folder / 'dataset_flickr8k.json'}")
    found = read_karpathy_split(folder / "dataset_flickr8k.json", folder / "images", "flickr8k", "error")
    assert [len(found.split(name).image_index) for name in ("train", "val", "test")] == [6000, 1000, 1000]
    assert protocol_line(found.split("test")) == "1,000 images, 5,000 captions (5 each)"
    assert len(Vocabulary.build(found.split("train").tokens, 5).words) == 2537
