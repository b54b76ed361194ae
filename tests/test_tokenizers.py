"""From captions of any language to words, and the vocabulary that remembers how."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capbench.base.errors import CapbenchError
from capbench.data.tokenizers import TOKENIZERS, spelling, tokenize
from capbench.data.vocabulary import END, START, UNKNOWN, Vocabulary

SCRIPTS = st.text(st.sampled_from("aZ9 ßİläñЖёДא漢字かなガー한국ก็हिं①½'’-_.,!\u200b\u200c\u00ad\u0301\u0345ΑΣς\t"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Der Hund läuft über die Straße.", ["der", "hund", "läuft", "über", "die", "strasse"]),
        ("La\u0308uft", ["läuft"]),
        ("Собака БЕЖИТ, м'яч!", ["собака", "бежит", "мяч"]),
        ("ΟΔΟΣ οδός", ["οδοσ", "οδόσ"]),
        ("赤いボール。", ["赤", "い", "ボ", "ー", "ル"]),
        ("两只狗 run 3次", ["两", "只", "狗", "run", "3", "次"]),
        ("빨간 공이 있다", ["빨간", "공이", "있다"]),
        ("एक कुत्ता", ["एक", "कुत्ता"]),
        ("كلبٌ يجري", ["كلبٌ", "يجري"]),
        ("می\u200cروم", ["میروم"]),
        ("แมว\u200bดำ", ["แมว", "ดำ"]),
        ("It isn't a T-shirt_1, isn’t it?", ["it", "isnt", "a", "t", "shirt", "1", "isnt", "it"]),
        ("\U0001f600 ...", []),
        ("", []),
    ],
)
def test_a_caption_of_any_language_becomes_its_letters_marks_and_digits(text, words):
    assert tokenize(text, "unicode") == words


def test_captions_that_are_tokenised_already_are_left_as_they_are():
    assert tokenize("A  Red\tball , 赤い ボール .", "whitespace") == ["A", "Red", "ball", ",", "赤い", "ボール", "."]


@given(st.one_of(st.text(), SCRIPTS), st.sampled_from(list(TOKENIZERS)))
def test_words_between_spaces_give_the_same_words_again(text, name):
    words = tokenize(text, name)
    assert tokenize(" ".join(words), name) == words
    assert all(word.split() == [word] for word in words)


@given(SCRIPTS)
def test_nothing_but_letters_marks_and_digits_remains_and_the_form_of_the_input_does_not_matter(text):
    words = tokenize(text, "unicode")
    assert {unicodedata.category(letter)[0] for letter in "".join(words)} <= set("LMN")
    assert words == tokenize(unicodedata.normalize("NFD", text), "unicode")


def test_an_unknown_tokeniser_is_refused_with_the_known_ones():
    with pytest.raises(CapbenchError, match="no tokeniser 'ptb'; there are karpathy, unicode, whitespace"):
        tokenize("a", "ptb")
    with pytest.raises(CapbenchError, match="no tokeniser 'ptb'"):
        Vocabulary(("a",), (1,), tokenizer="ptb")


def test_a_vocabulary_reads_sentences_by_the_tokeniser_that_it_was_built_with(tmp_path):
    built = Vocabulary.build([tokenize("Собака бежит", "unicode")], 1, "unicode")
    built.save(tmp_path / "v.json")
    loaded = Vocabulary.load(tmp_path / "v.json")
    assert loaded.tokenizer == "unicode"
    assert loaded.tokenize("СОБАКА!") == ["собака"]
    assert loaded.encode_text("СОБАКА спит") == [START, loaded.numbers["собака"], UNKNOWN, END]


def test_a_vocabulary_from_before_tokenisers_had_names_is_karpathys(tmp_path):
    (tmp_path / "v.json").write_text(json.dumps({"words": ["a"], "counts": [3]}))
    assert Vocabulary.load(tmp_path / "v.json").tokenizer == "karpathy"


def test_a_sentence_finds_words_with_capitals_and_punctuation_of_data_that_were_tokenised_already():
    words = Vocabulary(("A", "Red", "ball", ".", "T-shirt", "Läuft"), (6, 5, 4, 3, 2, 1), tokenizer="whitespace")
    assert words.encode_text("a RED ball, t-shirt läuft . zebra") == [START, 4, 5, 6, 8, 9, 7, UNKNOWN, END]
    assert words.encode_text("?") == [START, UNKNOWN, END], "no letter is no spelling"
    assert spelling("T-Shirt!", "whitespace") == spelling("t-shirt", "whitespace") == "tshirt"
