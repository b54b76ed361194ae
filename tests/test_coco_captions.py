"""COCO's own caption files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from capbench.base.errors import CapbenchError
from capbench.data.captions import CaptionDataset, protocol_line
from capbench.data.coco_captions import read_coco_captions


def val2014() -> dict[str, Any]:
    """Three images in the exact format; the annotations stand in no order, as COCO's do."""

    def picture(number):
        name = f"COCO_val2014_{number:012d}.jpg"
        address = f"http://images.cocodataset.org/val2014/{name}"
        return {
            "license": 3, "file_name": name, "coco_url": address, "height": 360, "width": 640,
            "date_captured": "2013-11-14 11:18:45", "flickr_url": "http://farm9.staticflickr.com/x.jpg", "id": number,
        }  # fmt: skip

    captions = [
        (203564, 37, "A bicycle replica with a clock as the front wheel."),
        (179765, 38, "A black Honda motorcycle parked in front of a garage."),
        (322141, 49, "A room with blue walls and a white sink and door."),
        (203564, 89, "The bike has a clock as a tire.\n"),
        (179765, 182, "A Honda motorcycle in a grass driveway"),
    ]
    return {
        "info": {"description": "This is stable 1.0 version of the 2014 MS COCO dataset.", "year": 2014},
        "images": [picture(number) for number in (203564, 322141, 179765)],
        "licenses": [{"url": "http://creativecommons.org/licenses/by-nc-sa/2.0/", "id": 1, "name": "Attribution"}],
        "type": "captions",
        "annotations": [{"image_id": i, "id": number, "caption": text} for i, number, text in captions],
    }


def read(folder: Path, content: dict[str, Any] | str, split="val") -> CaptionDataset:
    path = folder / "captions_val2014.json"
    path.write_text(json.dumps(content) if isinstance(content, dict) else content, encoding="utf-8")
    return read_coco_captions(path, folder / "val2014", split)


def test_captions_are_grouped_by_image_in_the_order_of_the_file(tmp_path):
    found = read(tmp_path, val2014())
    assert found.name == "coco"
    assert found.image_ids == (203564, 322141, 179765)
    assert found.image_names[0] == "COCO_val2014_000000203564.jpg"
    assert found.image_of_caption.tolist() == [0, 0, 1, 2, 2]
    assert found.caption_ids == (37, 89, 49, 38, 182)
    assert found.captions[1] == "The bike has a clock as a tire."
    assert found.tokens[3] == ("a", "black", "honda", "motorcycle", "parked", "in", "front", "of", "a", "garage")
    assert found.splits == ("val",)
    assert protocol_line(found.split("val")) == "3 images, 5 captions (1 to 2 each, mean 1.7)"


def test_pictures_are_read_from_the_folder_and_the_missing_ones_listed(tmp_path):
    found = read(tmp_path, val2014())
    (tmp_path / "val2014").mkdir()
    Image.new("RGB", (8, 6), "red").save(tmp_path / "val2014" / found.image_names[0])
    assert found.images[0].shape == (6, 8, 3)
    with pytest.raises(CapbenchError, match=r"2 of 3 images are missing.*322141\.jpg, .*179765\.jpg"):
        found.images.check()


def test_odd_captions_neither_stop_nor_shift(tmp_path):
    content = val2014()
    odd = ["a\u2028dog\r\nruns", "\ud83d x \U0001f600", "a ||| b", "", "..."]
    for annotation, text in zip(content["annotations"], odd, strict=True):
        annotation["caption"] = text
    found = read(tmp_path, content)
    by_id = dict(zip(found.caption_ids, zip(found.captions, found.tokens, strict=True), strict=True))
    assert by_id == {
        37: ("a dog runs", ("a", "dog", "runs")),
        38: ("\ufffd x \U0001f600", ("x",)),
        49: ("a ||| b", ("a", "b")),
        89: ("", ()),
        182: ("...", ()),
    }
    assert protocol_line(found.split("val")).endswith(", 2 of them without a word")


def damaged(part: str, number: int, **fields) -> dict[str, Any]:
    content = val2014()
    content[part][number] |= fields
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, "annotations: Field required"),
        ({"images": [], "annotations": []}, "no images"),
        (damaged("images", 1, id="49"), r"images\[1\]\.id: Input should be a valid integer"),
        (damaged("images", 1, id=203564), "image_id 322141, which is not among the images|image ids given twice"),
        (damaged("images", 0, file_name="../../etc/passwd"), "image names that are no paths inside .*etc/passwd"),
        (damaged("annotations", 2, image_id=5), r"annotation 49 is of image_id 5, which is not among the images \(1 "),
        (damaged("annotations", 2, image_id=203564), r"without a caption: 'COCO_val2014_000000322141\.jpg'"),
        (damaged("annotations", 2, id=37), "caption ids given twice: 37"),
        (damaged("annotations", 2, caption=None), r"annotations\[2\]\.caption: Input should be a valid string"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, content, message):
    with pytest.raises(CapbenchError, match=rf"captions_val2014\.json: .*({message})"):
        read(tmp_path, content)


def test_a_truncated_file_says_so(tmp_path):
    text = json.dumps(val2014(), indent=1)
    with pytest.raises(CapbenchError, match=r"captions_val2014\.json, line \d+, .*ends too early"):
        read(tmp_path, text[: len(text) // 2])


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(CapbenchError, match="split names other than train, val, test: 'val2014'"):
        read(tmp_path, val2014(), "val2014")
