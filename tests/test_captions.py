"""The data-set type: what it refuses, what it counts, and that captions stay with their images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capbench.base.errors import CapbenchError
from capbench.data.captions import CaptionDataset, duplicates, one_line, path_fault, protocol_line
from capbench.data.scenes import scenes

LINE_BREAKS = ("\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")


class Pictures:
    """Black pictures whose fingerprint nobody may ask for."""

    def __init__(self, count: int) -> None:
        self.count = count

    @property
    def fingerprint(self) -> str:
        raise AssertionError("the fingerprint was computed")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return np.zeros((2, 2, 3), np.uint8)

    def check(self) -> None:
        pass


def dataset(splits=("train", "test", "train"), owners=(0, 0, 1, 2, 2), **changed) -> CaptionDataset:
    images, captions = len(splits), len(owners)
    fields: dict[str, Any] = {
        "name": "small",
        "images": Pictures(images),
        "image_names": tuple(f"{i}.jpg" for i in range(images)),
        "image_ids": tuple(range(100, 100 + images)),
        "split_of_image": tuple(splits),
        "captions": tuple(f"Caption {i}." for i in range(captions)),
        "tokens": tuple(("caption", str(i)) for i in range(captions)),
        "caption_ids": tuple(range(captions)),
        "image_of_caption": np.array(owners, np.int64),
    }
    return CaptionDataset(**(fields | changed))


def test_making_a_dataset_computes_no_fingerprint_of_the_pictures():
    assert len(dataset().images) == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": Pictures(4)}, "images has 4 entries, expected 3"),
        ({"image_ids": (1, 2)}, "image_ids has 2 entries"),
        ({"splits": ()}, "no images"),
        ({"tokens": (("a",),)}, "tokens has 1 entries, expected 5"),
        ({"caption_ids": (1,)}, "caption_ids has 1 entries"),
        ({"phrases": ()}, "phrases has 0 entries"),
        ({"splits": ("train", "test", "holdout")}, "split names other than train, val, test: 'holdout'"),
        ({"image_names": ("a", "b", "a"), "splits": ("train", "test", "val")}, "'a' is in two splits, train and val"),
        ({"image_names": ("a", "b", "a")}, "images listed twice: 'a'"),
        ({"image_ids": (7, 8, 7)}, "image ids given twice: 7"),
        ({"caption_ids": (1, 2, 3, 4, 3)}, "caption ids given twice: 3"),
        ({"image_names": ("a", "../b", "c")}, "an image name that is no relative path inside the folder: '../b'"),
        ({"owners": (0, 1, 2, 3, 0)}, "captions of an unknown image: 3"),
        ({"owners": (0, 1, 2, -1, 0)}, "captions of an unknown image: 3"),
        ({"owners": (0, 0, 0, 1, 1)}, "images without a caption: '2.jpg'"),
        ({"captions": ("a", "b", "c\u2028d", "e", "f")}, "captions with a line break"),
        ({"captions": ("a", "b", "c\ud800", "e", "f")}, "lone surrogate"),
        ({"tokens": (("a b",),) * 5}, "white space"),
        ({"tokens": (("",),) * 5}, "tokens that are empty"),
        ({"tokens": (("a\udc00",),) * 5}, "lone surrogate"),
    ],
)
def test_a_dataset_that_contradicts_itself_is_refused(changed, message):
    with pytest.raises(CapbenchError, match=message.replace("(", r"\(")):
        dataset(**changed)


def test_owners_that_are_not_int64_are_refused():
    with pytest.raises(Exception, match="image_of_caption"):  # by the type check or by the data set itself
        dataset(image_of_caption=np.zeros(5))


def test_a_long_list_of_faults_is_cut():
    with pytest.raises(CapbenchError) as caught:
        dataset(splits=("train",) * 9, owners=(0,))
    assert str(caught.value).endswith("'1.jpg', '2.jpg', '3.jpg', '4.jpg', '5.jpg', ...")


@pytest.mark.fault("unknown split")
def test_an_unknown_split_names_the_known_ones():
    with pytest.raises(CapbenchError, match="small has no split 'val'; it has train, test"):
        dataset().split("val")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_split_keeps_each_caption_with_its_image(data):
    splits = data.draw(st.lists(st.sampled_from(["train", "val", "test"]), min_size=1, max_size=8))
    more = data.draw(st.lists(st.integers(0, len(splits) - 1), max_size=12))
    owners = data.draw(st.permutations([*range(len(splits)), *more]))
    whole = dataset(splits, owners)
    seen = 0
    for name in whole.splits:
        part = whole.split(name)
        assert [whole.split_of_image[i] for i in part.image_index] == [name] * len(part.image_index)
        expected = [c for c, owner in enumerate(owners) if splits[owner] == name]
        assert part.caption_index.tolist() == expected
        assert [part.image_index[i] for i in part.image_of_caption] == [owners[c] for c in expected]
        assert part.captions == tuple(whole.captions[c] for c in expected)
        assert part.tokens == tuple(whole.tokens[c] for c in expected)
        seen += len(expected)
    assert seen == len(owners)


def test_the_protocol_line_says_how_many_captions_each_image_has():
    assert protocol_line(dataset(("test",) * 2, (0, 1, 0, 1)).split("test")) == "2 images, 4 captions (2 each)"
    assert protocol_line(dataset(("test",) * 2, (0, 1, 1, 1, 1)).split("test")) == (
        "2 images, 5 captions (1 to 4 each, mean 2.5)"
    )
    many = dataset(("test",) * 1000, np.repeat(np.arange(1000), 5).tolist())
    assert protocol_line(many.split("test")) == "1,000 images, 5,000 captions (5 each)"


def test_the_protocol_line_counts_captions_without_a_word_and_ends_with_the_notes():
    tokens = (("a",), (), (".", "!"), ("b",))
    part = dataset(("test",) * 2, (0, 0, 1, 1), tokens=tokens, notes=("3 restval images in train",)).split("test")
    assert protocol_line(part) == ("2 images, 4 captions (2 each), 2 of them without a word; 3 restval images in train")
    assert part.tokens == tokens


def test_the_fingerprint_changes_with_each_part_and_not_with_the_pictures():
    base = dataset()
    assert base.fingerprint == dataset(images=Pictures(3)).fingerprint
    changed: dict[str, Any] = {
        "image_names": ("x.jpg", *base.image_names[1:]),
        "image_ids": (1, *base.image_ids[1:]),
        "split_of_image": ("val", *base.split_of_image[1:]),
        "captions": ("Other.", *base.captions[1:]),
        "tokens": (("other",), *base.tokens[1:]),
        "caption_ids": (99, *base.caption_ids[1:]),
        "image_of_caption": np.array([1, 0, 1, 2, 2], np.int64),
    }
    prints = {replace(base, **{name: value}).fingerprint for name, value in changed.items()}
    assert len(prints | {base.fingerprint}) == len(changed) + 1


@pytest.mark.parametrize("mark", LINE_BREAKS)
def test_every_kind_of_line_break_becomes_a_space(mark):
    assert one_line(f"a dog{mark}runs") == "a dog runs"
    assert one_line(f"a dog runs{mark}") == "a dog runs"


@given(st.text(st.characters() | st.sampled_from("".join(LINE_BREAKS) + "\ud800\udfff|\U0001f600")))
def test_one_line_is_one_line_that_utf8_can_hold_and_stays_as_it_is(text):
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    line.encode()
    assert one_line(line) == line


def test_one_line_keeps_emoji_and_bars():
    assert one_line("a ||| b \U0001f600 c") == "a ||| b \U0001f600 c"


@pytest.mark.parametrize("name", ["", "..", "../a", "a/../../b", "/etc/passwd", "C:\\a", "a\\..\\b", "a:b", "a\0b"])
def test_a_name_that_leads_elsewhere_does_not_stay_inside(name):
    assert path_fault(name) == "is no relative path inside the folder"


@pytest.mark.parametrize("name", [".", "./a.jpg", "a//b.jpg", "a/./b.jpg", "a/"])
def test_a_picture_has_one_name(name):
    assert path_fault(name) == "has an empty part or '.' in its path"


def test_a_name_that_no_file_system_takes_is_refused():
    assert path_fault(f"images/{'é' * 128}") == "has a part of 256 bytes, and 255 is the most"
    assert path_fault(f"images/{'é' * 127}/a.jpg") == ""


@pytest.mark.parametrize("name", ["a.jpg", "val2014/COCO_val2014_000000391895.jpg", "a b.jpg", "..a.jpg", "a..b/c"])
def test_a_plain_name_stays_inside(name):
    assert path_fault(name) == ""


def test_duplicates_come_once_in_the_order_of_their_first_place():
    assert duplicates([3, 1, 2, 1, 3, 3]) == [3, 1]
    assert duplicates([]) == []


def test_the_first_images_of_a_split_keep_the_numbers_of_their_captions():
    split = scenes(train=4, val=2, test=5).split("test")
    first = split.first(3)
    assert first.image_index.tolist() == split.image_index[:3].tolist()
    assert first.captions == tuple(c for c, own in zip(split.captions, split.image_of_caption, strict=True) if own < 3)
    assert first.captions == split.captions[: len(first.captions)]
    with pytest.raises(CapbenchError, match="the test split has 5 images, not 6"):
        split.first(6)
    with pytest.raises(CapbenchError, match="not in the order of its images"):
        replace(split, image_of_caption=split.image_of_caption[::-1].copy()).first(3)


@settings(max_examples=60, deadline=None)
@given(st.permutations([0] * 3 + [1] + [2] * 7), st.integers(1, 8))
def test_the_first_captions_of_each_image_are_the_first_in_the_split_whatever_its_order(owners, each):
    split = dataset(("test",) * 3, owners).split("test")
    expected = [c for c, owner in enumerate(owners) if owners[:c].count(owner) < each]
    assert split.first_captions(each).tolist() == expected
