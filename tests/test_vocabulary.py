"""Words and numbers: order, special numbers, files that are refused."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capbench.base.errors import CapbenchError
from capbench.data.tokenizers import tokenize
from capbench.data.vocabulary import END, PAD, SPECIAL, START, UNKNOWN, Vocabulary

CAPTIONS = [("a", "dog", "runs"), ("a", "cat", "runs"), ("a", "zebra")]
WORDS = st.lists(st.lists(st.sampled_from([*"abcdefg", "\U0001f600", "|||", *SPECIAL]), max_size=6), max_size=20)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A boy in a red T-shirt .", ["a", "boy", "in", "a", "red", "tshirt"]),
        ("Two dogs' ball, 3 metres", ["two", "dogs", "ball", "3", "metres"]),
        ("a\tdog\nruns", ["a", "dog", "runs"]),
        ("a\u2028dog\x85runs", ["a", "dog", "runs"]),
        ("a \U0001f600 ||| dog \ud800", ["a", "dog"]),
        ("...!", []),
        ("", []),
    ],
)
def test_a_caption_becomes_lower_case_letters_and_digits(text, words):
    assert tokenize(text) == words


@given(st.text())
def test_tokens_hold_nothing_but_letters_and_digits(text):
    assert all(word and set(word) <= set("abcdefghijklmnopqrstuvwxyz0123456789") for word in tokenize(text))


def test_the_frequent_words_come_first_and_equals_by_the_alphabet():
    built = Vocabulary.build(CAPTIONS, 1)
    assert built.words == ("a", "runs", "cat", "dog", "zebra")
    assert built.counts == (3, 2, 1, 1, 1)
    assert len(built) == 4 + 5
    assert Vocabulary.build(reversed(CAPTIONS), 1) == built


def test_rare_words_become_unknown_and_are_counted():
    built = Vocabulary.build(CAPTIONS, 2)
    assert built.words == ("a", "runs")
    assert built.unknown_count == 3
    assert built.encode(("a", "dog", "runs")) == [START, 4, UNKNOWN, 5, END]
    assert built.decode([START, 4, UNKNOWN, 5, END, 4, PAD]) == ["a", "<unknown>", "runs"]


def test_a_caption_without_a_word_is_start_and_end():
    built = Vocabulary.build(CAPTIONS, 1)
    assert built.encode(()) == [START, END]
    assert built.decode([START, END]) == []


def test_a_caption_cannot_spell_a_special_number():
    built = Vocabulary.build([("<end>", "a", "<pad>")], 1)
    assert built.words == ("a",)
    assert built.encode(("<end>", "a", "<pad>")) == [START, UNKNOWN, 4, UNKNOWN, END]


@given(WORDS, st.integers(1, 3))
def test_building_agrees_with_counting_by_hand(captions, min_count):
    counts = Counter(word for caption in captions for word in caption)
    kept = {word for word in counts if counts[word] >= min_count and word not in SPECIAL}
    if not kept:
        with pytest.raises(CapbenchError, match="lower min_count"):
            Vocabulary.build(captions, min_count)
        return
    built = Vocabulary.build(captions, min_count)
    assert set(built.words) == kept
    assert dict(zip(built.words, built.counts, strict=True)) == {word: counts[word] for word in kept}
    assert built.unknown_count == counts.total() - sum(built.counts)
    for caption in captions:
        known = [word if word in kept else "<unknown>" for word in caption]
        assert built.decode(built.encode(caption)) == known


def test_a_sentence_finds_the_words_of_data_that_were_tokenised_in_another_way():
    words = Vocabulary(("Red", "red", "T-shirt", "Ball"), (4, 3, 2, 1))
    assert words.encode_text("A RED ball, a t-shirt!") == [START, UNKNOWN, 5, 7, UNKNOWN, 6, END]


@given(st.lists(st.sampled_from(["a", "dog", "cat", "Zebra", "3"])))
def test_a_sentence_is_encoded_as_its_tokens_where_the_data_have_the_same(spoken):
    words = Vocabulary.build([["a", "dog"], ["cat", "3"]], 1)
    assert words.encode_text(" ".join(spoken)) == words.encode(tokenize(" ".join(spoken)))


def test_a_number_outside_is_refused():
    built = Vocabulary.build(CAPTIONS, 1)
    for number in (-1, len(built)):
        with pytest.raises(CapbenchError, match=f"{number} is outside the vocabulary of 9"):
            built.decode([START, number])


def test_what_was_saved_comes_back(tmp_path):
    built = Vocabulary.build([*CAPTIONS, ("\U0001f600", "\ufffd", "é")], 1)
    built.save(tmp_path / "a b.json")
    loaded = Vocabulary.load(tmp_path / "a b.json")
    assert loaded == built
    assert loaded.fingerprint == built.fingerprint
    assert loaded.fingerprint != Vocabulary.build(CAPTIONS, 1).fingerprint


class Harmful:
    """Creates the file "harm" where a pickle of it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.fault("pickled vocabulary of older projects")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["code", "words", "list"])
def test_a_pickle_is_refused_and_not_opened(tmp_path, protocol, kind):
    harm = tmp_path / "harm"
    content = {"code": Harmful(harm), "words": {"word2idx": {"a": 4}}, "list": ["a"]}[kind]
    path = tmp_path / "vocab.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(CapbenchError, match=r"vocab\.pkl is a pickle.*export it to JSON"):
        Vocabulary.load(path)
    assert not harm.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1, column 1: malformed JSON"),
        (b'{"words": ["a", "b', "ends too early"),
        (b'{"words": ["a"]}', "counts: Field required"),
        (b'{"words": ["a"], "counts": ["1"]}', r"counts\[0\]: Input should be a valid integer"),
        (b'{"words": ["a"], "counts": [-1]}', r"counts\[0\]"),
        (b'{"words": ["a"], "counts": [1, 2]}', "1 words has 2 counts"),
        (b'{"words": ["a", "a"], "counts": [1, 2]}', "'a' twice"),
        (b'{"words": ["<end>"], "counts": [1]}', "'<end>' twice"),
        (b'["a"]', "Input should be an object"),
        (b"<html>not found</html>", "malformed JSON"),
        (b'{"words": ["\xff"], "counts": [1]}', "line 1: not UTF-8"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "v.json").write_bytes(content)
    with pytest.raises(CapbenchError, match=rf"v\.json.*{message}"):
        Vocabulary.load(tmp_path / "v.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CapbenchError, match=r"gone\.json: No such file"):
        Vocabulary.load(tmp_path / "gone.json")


def test_a_byte_order_mark_is_no_fault(tmp_path):
    text = json.dumps({"words": ["a"], "counts": [3]})
    (tmp_path / "v.json").write_text(text, encoding="utf-8-sig")
    assert Vocabulary.load(tmp_path / "v.json") == Vocabulary(("a",), (3,))


@pytest.mark.skipif("CAPBENCH_DATA" not in os.environ, reason="CAPBENCH_DATA is not set")
def test_flickr8k_has_2537_words_that_training_captions_use_five_times():
    path = Path(os.environ["CAPBENCH_DATA"]) / "flickr8k" / "dataset_flickr8k.json"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    images = json.loads(path.read_text(encoding="utf-8"))["images"]
    train = [s["tokens"] for image in images if image["split"] == "train" for s in image["sentences"]]
    assert len(Vocabulary.build(train, 5).words) == 2537
    sentences = [sentence for image in images for sentence in image["sentences"]]
    assert all(tokenize(sentence["raw"]) == sentence["tokens"] for sentence in sentences)
