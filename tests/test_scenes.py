from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
import pytest

from capbench.base.errors import CapbenchError
from capbench.data.batches import length_grouped
from capbench.data.captions import CaptionDataset, Phrase
from capbench.data.karpathy_split import read_karpathy_split
from capbench.data.scenes import SceneImages, export, scenes
from capbench.data.scenes.dice import Dice
from capbench.data.scenes.drawing import Scene, Thing, draw_scene, render
from capbench.data.scenes.export import export_scenes
from capbench.data.scenes.language import places, relations
from capbench.data.scenes.words import COLOURS, PLACES, RELATIONS, SETTINGS, SHAPES, SIZES, THINGS
from capbench.vision.regions import region_boxes

NUMBERS = {"a": 1, "an": 1, "the": 1, "one": 1, "two": 2, "three": 3, "four": 4}


@cache
def small() -> CaptionDataset:
    return scenes(train=200, val=20, test=60)


def drawn(data: CaptionDataset) -> tuple[Scene, ...]:
    assert isinstance(data.images, SceneImages)
    return data.images.scenes


def phrases_of(data: CaptionDataset) -> tuple[tuple[Phrase, ...], ...]:
    assert data.phrases is not None
    return data.phrases


def pairs(data: CaptionDataset) -> Iterator[tuple[Scene, tuple[str, ...], tuple[Phrase, ...]]]:
    for caption, image in enumerate(data.image_of_caption):
        yield drawn(data)[image], data.tokens[caption], phrases_of(data)[caption]


def meaning(word: str, table: Mapping[str, tuple[str, ...]]) -> str | None:
    singular = re.sub(r"(?<=[sx])es$|(?<!s)s$", "", word) if word != "plus" else word
    return next((key for key, words in table.items() if word in words or singular in words), None)


def asked(words: tuple[str, ...]) -> tuple[int, dict[str, str]]:
    """What a phrase asks for: how many, and which size, colour and shape, read by its words alone."""
    wanted: dict[str, str] = {}
    for word in words[1:]:
        found = [
            (what, meaning(word, table)) for what, table in (("size", SIZES), ("colour", COLOURS), ("shape", SHAPES))
        ]
        known = [(what, value) for what, value in found if value]
        assert known or word.removesuffix("s") in THINGS, word
        wanted.update(known)
    return NUMBERS[words[0]], wanted


def fitting(scene: Scene, wanted: dict[str, str]) -> list[Thing]:
    return [t for t in scene.things if all(getattr(t, what) == value for what, value in wanted.items())]


def said(tokens: tuple[str, ...], phrases: tuple[Phrase, ...]) -> Iterator[tuple[str, str, int, int]]:
    """The relations and places of a caption, as (kind, name, phrase, other phrase)."""
    subject = 0
    ends = [*(phrase.start for phrase in phrases[1:]), len(tokens)]
    for index, (phrase, end) in enumerate(zip(phrases, ends, strict=True)):
        gap = " ".join(tokens[phrase.end : end])
        if not gap.startswith("and "):
            subject = index
        relation = [n for n, words in RELATIONS.items() if any(f" {gap}".endswith(f" {w}") for w in words)]
        place = [n for n, words in PLACES.items() if any(f" {w} " in f" {gap} " for w in words)]
        if relation:
            yield "relation", relation[0], subject, index + 1
        elif place:
            yield "place", place[0], index, index


class Meaning(NamedTuple):
    """What a caption says: the things, the relations and places, and the setting, where it is said."""

    things: list[tuple[int, dict[str, str]]]
    said: Sequence[tuple[str, str, int, int]] = ()
    setting: str | None = None


def read(tokens: tuple[str, ...], phrases: tuple[Phrase, ...]) -> Meaning:
    text = " ".join(tokens)
    setting = next((name for name, words in SETTINGS.items() if text.endswith(words)), None)
    return Meaning([asked(tokens[p.start : p.end]) for p in phrases], list(said(tokens, phrases)), setting)


def is_true(scene: Scene, meant: Meaning) -> bool:
    """Whether a caption could have been said of a scene."""
    if meant.setting not in (None, scene.setting):
        return False
    groups = []
    for count, wanted in meant.things:
        groups.append(fitting(scene, wanted))
        if len(groups[-1]) != count:
            return False
    return all(
        name in (relations(groups[one], groups[other]) if kind == "relation" else places(groups[one]))
        for kind, name, one, other in meant.said
    )


def test_pixels_are_the_same_bytes_everywhere():
    pixels = np.stack([small().images[i] for i in range(len(small().images))])
    assert pixels.dtype == np.uint8
    assert pixels.shape == (280, 64, 64, 3)
    assert (
        hashlib.sha256(pixels.tobytes()).hexdigest()
        == "1e872a37863296512616a1d72581139a8d39fae212ea313e8eb10e3c8c7c12d3"
    ), "raise RENDER_VERSION, then pin anew"


def test_captions_and_phrases_are_the_same_everywhere():
    lines = [f"{text}|{phrases}" for text, phrases in zip(small().captions, phrases_of(small()), strict=True)]
    assert (
        hashlib.sha256("\n".join(lines).encode()).hexdigest()
        == "3b8196696cb49c9675e98bd08dca133f80d84e498645bec056e1255f069245d2"
    )


def test_a_smaller_set_is_the_beginning_of_a_larger_one():
    less = scenes(train=3, val=1, test=2)
    assert less.captions[:15] == small().captions[:15]
    assert less.captions[-10:] == small().captions[1100:1110]
    assert np.array_equal(less.images[4], small().images[220])
    assert less.images.fingerprint != small().images.fingerprint


def test_another_seed_gives_other_scenes_and_another_fingerprint():
    one, two = (scenes(seed, train=2, val=1, test=1) for seed in (0, 1))
    assert one.captions != two.captions
    assert not np.array_equal(one.images[0], two.images[0])
    assert one.images.fingerprint != two.images.fingerprint


def test_it_is_a_data_set_with_three_splits_and_five_captions_an_image():
    data = small()
    assert data.splits == ("train", "val", "test")
    assert [len(data.split(name).image_index) for name in data.splits] == [200, 20, 60]
    assert np.bincount(data.image_of_caption).tolist() == [5] * 280
    data.images.check()


@pytest.mark.parametrize("sizes", [(-1, 2, 2), (0, 0, 0)])
def test_a_negative_or_empty_size_is_refused(sizes: tuple[int, int, int]):
    with pytest.raises(CapbenchError, match="give sizes of 0 or more"):
        scenes(0, *sizes)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [5, 6, 8, 9, 12, 13])
def test_a_box_is_the_smallest_around_the_pixels_of_its_thing(shape: str, radius: int):
    thing = Thing(shape, "red", "medium", 30, 33, radius, (255, 0, 0))
    pixels = render(Scene("night", (0, 0, 0), (thing,)))[:, :, 0]
    rows, columns = pixels.nonzero()
    assert thing.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert (pixels == 255).sum() > 0.09 * (2 * radius) ** 2, "a solid shape, not an outline"
    cell = pixels[33 - radius : 33 + radius, 30 - radius : 30 + radius]
    assert np.abs(cell.astype(int) - cell[:, ::-1]).max() <= 32, "left and right are alike"


def test_things_of_a_scene_never_touch_and_lie_on_the_canvas():
    for scene in drawn(small()):
        assert 2 <= len(scene.things) <= 4
        assert len({(t.shape, t.colour) for t in scene.things}) > 1
        for one, two in combinations([t.box for t in scene.things], 2):
            assert one[2] < two[0] or two[2] < one[0] or one[3] < two[1] or two[3] < one[1]
        assert all(min(t.box) >= 0 and max(t.box) <= 64 for t in scene.things)


def test_a_pixel_outside_of_all_boxes_is_background():
    for index, scene in enumerate(drawn(small())[:60]):
        outside = np.ones((64, 64), bool)
        for x0, y0, x1, y1 in (np.array(t.box, int) for t in scene.things):
            outside[y0:y1, x0:x1] = False
        assert (small().images[index][outside] == scene.background).all()


def test_a_phrase_names_exactly_the_things_that_fit_its_words():
    for scene, tokens, phrases in pairs(small()):
        assert phrases
        for phrase in phrases:
            count, wanted = asked(tokens[phrase.start : phrase.end])
            things = fitting(scene, wanted)
            assert len(things) == count, tokens
            assert sorted(t.box for t in things) == sorted(phrase.boxes), tokens
        assert all(one.end <= two.start for one, two in pairwise(phrases))


def test_every_word_for_a_thing_is_inside_a_phrase():
    nouns = {w for words in (*SHAPES.values(), THINGS) for w in words}
    nouns |= {w + "s" for w in nouns} | {w + "es" for w in nouns}
    for _, tokens, phrases in pairs(small()):
        inside = {i for phrase in phrases for i in range(phrase.start, phrase.end)}
        assert not [w for i, w in enumerate(tokens) if w in nouns and i not in inside], tokens


def test_every_relation_that_is_said_is_true_of_the_boxes():
    checked = 0
    for _, tokens, phrases in pairs(small()):
        for kind, name, one, other in said(tokens, phrases):
            if kind == "relation" and name in ("left", "right", "above", "below"):
                axis, sign = ("left", "above", "right", "below").index(name) % 2, name in ("left", "above")
                for a in phrases[one].boxes:
                    for b in phrases[other].boxes:
                        first, second = (a, b) if sign else (b, a)
                        assert first[axis + 2] <= second[axis], tokens
                        checked += 1
    assert checked > 300


def test_every_caption_is_true_of_its_image():
    assert all(is_true(scene, read(tokens, phrases)) for scene, tokens, phrases in pairs(small()))


def test_the_captions_of_a_scene_differ_and_have_5_to_16_words():
    captions = small().tokens
    lengths = {len(tokens) for tokens in captions}
    assert min(lengths) == 5
    assert max(lengths) == 16
    assert all(len(set(captions[i : i + 5])) == 5 for i in range(0, len(captions), 5))


def test_tokens_are_the_raw_text_in_lower_case_without_punctuation():
    for text, tokens in zip(small().captions, small().tokens, strict=True):
        assert tuple(re.findall("[a-z0-9]+", text.lower())) == tokens
        assert text[0].isupper()
        assert text.endswith(".")
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]| ,|  ", text.lower()), text


def test_all_synonyms_are_used():
    text = " " + " ".join(" ".join(tokens) for tokens in small().tokens) + " "
    tables = (SHAPES, COLOURS, SIZES, RELATIONS, PLACES, SETTINGS)
    missing = [w for table in tables for words in table.values() for w in words if f" {w} " not in text]
    assert not missing


def test_captions_leave_things_out_and_large_things_less_often():
    named, there = dict.fromkeys(SIZES, 0), dict.fromkeys(SIZES, 0)
    for scene, _, phrases in pairs(small()):
        boxes = {box for phrase in phrases for box in phrase.boxes}
        for thing in scene.things:
            there[thing.size] += 1
            named[thing.size] += thing.box in boxes
    share = {size: named[size] / there[size] for size in SIZES}
    assert 0.5 < share["small"] < share["medium"] < share["large"] < 0.95


def test_a_caption_rarely_describes_another_image_of_its_batch():
    """Else the hardest negative is a match in truth, and the max of hinges learns from the mistake."""
    data = scenes(train=3000, val=0, test=0)
    lengths = np.array([len(tokens) for tokens in data.tokens])
    shared = []
    for batch in length_grouped(lengths, 128, 0, 0)[::10]:
        images = {int(image) for image in data.image_of_caption[batch]}
        for caption in batch:
            meant = read(data.tokens[caption], phrases_of(data)[caption])
            others = images - {int(data.image_of_caption[caption])}
            shared.append(any(is_true(drawn(data)[image], meant) for image in others))
    print(f"{100 * np.mean(shared):.1f} % of {len(shared):,} captions describe another image of their batch of 128")
    assert len(shared) > 1000
    assert 0.02 < np.mean(shared) < 0.08


def test_retrieval_among_500_images_needs_all_that_a_caption_says():
    data = scenes(train=0, val=0, test=500)
    chances = []
    for caption in range(0, 2500, 10):
        meant = read(data.tokens[caption], phrases_of(data)[caption])
        fits = [scene for scene in drawn(data) if is_true(scene, meant)]
        unplaced = [scene for scene in drawn(data) if is_true(scene, Meaning(meant.things, (), meant.setting))]
        things = [scene for scene in drawn(data) if is_true(scene, Meaning(meant.things))]
        assert drawn(data)[caption // 5] in fits
        chances.append([100 / len(found) for found in (fits, unplaced, things)])
    reader, unplaced, things = np.mean(chances, axis=0)
    print(f"caption to image R@1 of a perfect reader {reader:.1f}, without relations and places {unplaced:.1f}")
    print(f"by the things alone {things:.1f}")
    assert 85 < reader < 97
    assert things < unplaced - 5 < reader - 10


def test_relations_agree_with_their_opposites():
    opposite = {"left": "right", "above": "below", "near": "near", "far": "far"}
    for index in range(100):
        things = draw_scene(Dice(5, index)).things
        for a, b in combinations(things, 2):
            there, back = relations([a], [b]), relations([b], [a])
            for one, two in opposite.items():
                assert (one in there) == (two in back)
                assert (two in there) == (one in back)


def test_a_relation_of_groups_holds_between_every_two_of_them():
    left, middle, right = (Thing("star", "red", "small", x, 30, 5, (0, 0, 0)) for x in (10, 30, 50))
    assert relations([left, middle], [right]) == ["left"]
    assert relations([left], [right]) == ["left", "far"]
    assert relations([left, right], [middle]) == []
    assert places([left]) == ["left"]
    assert places([left, middle]) == []


def test_dice_are_even_and_follow_the_odds():
    dice = Dice(0, "test")
    counts = np.bincount([dice.pick((0, 1, 2), (6, 3, 1)) for _ in range(4000)])
    assert np.abs(counts / 4000 - (0.6, 0.3, 0.1)).max() < 0.03
    assert {dice.below(3) for _ in range(200)} == {0, 1, 2}
    assert [Dice(1, "a").below(10**6) for _ in range(2)] == [Dice(1, "a").below(10**6)] * 2


def test_drawing_waits_until_an_image_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    asked_for = []

    def blank(scene: Scene) -> np.ndarray:
        asked_for.append(scene)
        return np.zeros((64, 64, 3), np.uint8)

    monkeypatch.setattr("capbench.data.scenes.render", blank)
    data = scenes(train=2, val=1, test=1)
    assert not asked_for
    data.images[3]
    assert asked_for == [drawn(data)[3]]


def test_exported_scenes_read_back_as_the_same_data_set(tmp_path):
    file = export_scenes(tmp_path, images=3)
    read = read_karpathy_split(file, tmp_path / "images", "scenes", "error")
    drawn = scenes(train=3, val=3, test=3)
    names = tuple(f"{name}.png" for name in drawn.image_names)
    assert read.fingerprint == replace(drawn, image_names=names).fingerprint
    for index in range(len(drawn.images)):
        np.testing.assert_array_equal(read.images[index], drawn.images[index])
    lines = (tmp_path / "captions.txt").read_text(encoding="utf-8").splitlines()
    of_test_images = {drawn.captions[caption] for caption in np.flatnonzero(drawn.image_of_caption >= 6)}
    assert len(lines) == len(of_test_images)
    assert set(lines) == of_test_images


def test_exported_regions_are_the_true_boxes_and_the_provider_of_files_reads_them(tmp_path):
    file = export_scenes(tmp_path / "pictures", images=3)
    read = read_karpathy_split(file, tmp_path / "pictures" / "images", "scenes", "error")
    ours, true = (region_boxes(data, name, tmp_path) for data, name in ((read, "file"), (drawn_scenes(), "objects")))
    np.testing.assert_array_equal(ours.array, true.array)
    np.testing.assert_array_equal(ours.count, true.count)


def test_exported_phrases_are_words_of_their_caption_with_the_boxes_of_what_they_name(tmp_path):
    split = json.loads(export_scenes(tmp_path, images=3).read_text())
    tokens = {each["sentid"]: each["tokens"] for image in split["images"] for each in image["sentences"]}
    phrases = json.loads((tmp_path / "phrases.json").read_text())
    assert list(phrases) == [f"{name}.png" for name in drawn_scenes().image_names]
    written = [phrase for of_image in phrases.values() for phrase in of_image]
    drawn = [phrase for of_caption in drawn_scenes().phrases or () for phrase in of_caption]
    assert drawn
    for phrase, true in zip(written, drawn, strict=True):
        assert phrase["phrase"].split() == tokens[phrase["sentid"]][phrase["start"] : phrase["end"]]
        assert [tuple(box) for box in phrase["boxes"]] == list(true.boxes)


def drawn_scenes() -> CaptionDataset:
    """What is exported with three images of each split."""
    return scenes(train=3, val=3, test=3)


def test_all_scenes_are_exported_without_a_limit(tmp_path, monkeypatch):
    written: list[str] = []
    monkeypatch.setattr(export, "atomic_write", lambda path, content: written.append(path.suffix))
    export_scenes(tmp_path)
    assert written.count(".png") == len(scenes().images)
