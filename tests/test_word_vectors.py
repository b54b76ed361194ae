"""Word vectors from files written here by hand, and files that are broken in every way that was thought of."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from capbench.base.errors import CapbenchError
from capbench.base.files import sha256
from capbench.data import word_vectors as module
from capbench.data.vocabulary import Vocabulary
from capbench.data.word_vectors import dimension_of, file_of, word_vectors

VOCABULARY = Vocabulary((*(f"w{i}" for i in range(20)), "at"), (9,) * 21)
BINARY = [("other", [7, 7, 7]), ("w3", [1, 2, 3]), ("w0", [-4, 0.5, 6])]


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def binary(entries, behind=b"", count=None):
    """A file of word2vec: the C program puts a line break `behind` each vector, GoogleNews has none."""
    parts = [word.encode() + b" " + np.array(values, "<f4").tobytes() + behind for word, values in entries]
    return f"{len(entries) if count is None else count} 3\n".encode() + b"".join(parts)


def row(vectors, word):
    return vectors[VOCABULARY.numbers[word]].tolist()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("glove.txt", "other 7 7 7\nw3 1 2 3\nw0 -4 0.5 6\n"),
        ("bom-and-crlf.txt", b"\xef\xbb\xbfw3 1 2 3\r\n\r\nw0 -4 5e-1 6"),
        ("trailing-spaces-and-tabs.txt", "w3\t1 2 3 \nw0 -4 0.5 6 \n"),
        ("not-utf-8.txt", b"\xff\xfe 7 7 7\nw\xa0 1 1 1\nw3 1 2 3\nw0 -4 .5 6\n"),
        ("word2vec.txt", "3 3\nother 7 7 7\nw3 1 2 3\nw0 -4 0.5 6\n"),
        ("words-of-several-parts.txt", "at home@example.org 1 2 3\n. . . 1 2 3\nw3 1 2 3\nw0 -4 .5 6\n"),
        ("the-first-counts.txt", "w3 1 2 3\nw0 -4 .5 6\nw3 9 9 9\n"),
        ("c.bin", binary(BINARY, b"\n")),
        ("google.bin", binary(BINARY)),
    ],
)
def test_every_form_gives_the_vectors_by_word(name, content, tmp_path):
    path = written(tmp_path, name, content)
    assert dimension_of(path) == 3
    vectors, note = word_vectors(VOCABULARY, 3, path)
    assert vectors.shape == (len(VOCABULARY), 3)
    assert vectors.dtype == torch.float32
    assert row(vectors, "w3") == [1, 2, 3]
    assert row(vectors, "w0") == [-4, 0.5, 6]
    assert note == f"word vectors of 2 words from {name}, SHA-256 {sha256(path)}; 3 numbers each"


def test_words_that_are_not_there_get_the_same_small_noise_whatever_the_file(tmp_path):
    torch.manual_seed(3)
    first, _ = word_vectors(VOCABULARY, 3, written(tmp_path, "a.txt", "w3 1 2 3\n"))
    torch.manual_seed(3)
    second, _ = word_vectors(VOCABULARY, 3, written(tmp_path, "b.txt", "w5 1 2 3\n"))
    torch.manual_seed(3)
    noise = 0.02 * torch.randn(len(VOCABULARY), 3)
    others = [i for i in range(len(VOCABULARY)) if i not in (VOCABULARY.numbers["w3"], VOCABULARY.numbers["w5"])]
    assert torch.equal(first[others], noise[others])
    assert torch.equal(second[others], noise[others])


@pytest.mark.parametrize("chunk", [1, 2, 7, 13, 64])
def test_a_binary_file_is_the_same_in_pieces_of_any_size(chunk, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    entries = [(f"w{i}" if i < 20 else "x" * i, random.standard_normal(3)) for i in range(40)]
    entries[5] = ("w5", np.frombuffer(b" \n \n \n \n \n \n", "<f4"))  # numbers that look like spaces and line breaks
    monkeypatch.setattr(module, "CHUNK", chunk)
    for behind in (b"", b"\n"):
        vectors, _ = word_vectors(VOCABULARY, 3, written(tmp_path, "v.bin", binary(entries, behind)))
        for word, values in entries[:20]:
            assert row(vectors, word) == np.array(values, np.float32).tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.txt", "w3 1 2\n", r"v\.txt, line 1: 2 numbers for 'w3', and 3 are needed"),
        ("v.txt", "a 1 2 3\nw3 1 2 3 4\n", r"line 2: 4 numbers for 'w3'"),
        ("v.txt", "w3\n", r"line 1: 0 numbers for 'w3'"),
        ("v.txt", "else 1 2 3\n", r"no word of the vocabulary is in .*v\.txt"),
        ("v.txt", "", "no word"),
        ("v.txt", "a 1 2 3\nw3 1 x 3\n", r"line 2: 'w3' has something else than numbers"),
        ("v.txt", "w3 1 nan 3\n", r"line 1: the vector of 'w3' is not finite"),
        ("v.txt", "w3 1 1e99 3\n", r"'w3' is not finite"),
        ("v.txt", "2 4\nw3 1 2 3 4\nw0 1 2 3 4\n", r"line 1: vectors of 4 numbers, and 3 are needed"),
        ("v.txt", "3 3\nw3 1.25 2.25 3\nw0 1 2 3\n", r"has 2 words, and its first line says 3"),
        ("v.txt", "1 3\nw3 1 2 3\nw0 1 2 3\n", r"has 2 words, and its first line says 1"),
        ("v.txt", binary(BINARY), r"name it \.bin"),
        ("v.txt", b"w3 " + b"1" * (1 << 20), r"line 1: no text"),
        ("v.txt", "999999999999 3\nw3 1 2 3\n", r"cut short, or its first line is wrong: 999,999,999,999 words"),
        ("v.txt.gz", b"\x1f\x8b\x08\x00", "compressed; unpack"),
        ("v.zip", b"PK\x03\x04", "compressed; unpack"),
        ("v.bin", binary([("w3", [1, 2, float("inf")])]), r"v\.bin, word 1: the vector of 'w3' is not finite"),
        ("v.bin", "w3 1 2 3\n", "does not begin with 'count dimension'"),
        ("v.bin", b"", "does not begin with 'count dimension'"),
        ("v.bin", binary(BINARY).replace(b"3 3", b"3 4", 1), "vectors of 4 numbers"),
        ("v.bin", binary(BINARY)[:-1], r"cut short: it ends in word 3 of 3"),
        ("v.bin", binary(BINARY)[:25], r"cut short, or its first line is wrong"),
        ("v.bin", binary(BINARY, count=2), r"goes on after the 2 words"),
        ("v.bin", binary([("w3", [1, 2, 3])]) + b"\n\nx", r"goes on after the 1 words"),
    ],
)
def test_a_broken_file_is_named_with_its_fault(name, content, message, tmp_path):
    with pytest.raises(CapbenchError, match=message):
        word_vectors(VOCABULARY, 3, written(tmp_path, name, content))


@pytest.mark.parametrize("cut", range(len(binary(BINARY, b"\n")) - 1))
def test_a_binary_file_that_is_cut_anywhere_is_refused(cut, tmp_path):
    with pytest.raises(CapbenchError, match=r"v\.bin"):
        word_vectors(VOCABULARY, 3, written(tmp_path, "v.bin", binary(BINARY, b"\n")[:cut]))


def test_a_binary_file_without_a_space_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LONGEST", 100)
    monkeypatch.setattr(module, "CHUNK", 50)
    with pytest.raises(CapbenchError, match="word 1: no space in 100 bytes"):
        word_vectors(VOCABULARY, 3, written(tmp_path, "v.bin", b"9 3\n" + b"x" * 1000))


def test_memory_does_not_grow_with_a_false_header_nor_with_the_file(tmp_path):
    false = written(tmp_path, "false.bin", b"999999999999999999 3\nw3 " + bytes(12))
    line = b"word" + b" 0.125" * 3 + b"\n"
    long = written(tmp_path, "long.txt", b"w3 1 2 3\n" + line * 100_000)
    torch.randn(1)
    tracemalloc.start()
    with pytest.raises(CapbenchError, match="first line is wrong"):
        word_vectors(VOCABULARY, 3, false)
    word_vectors(VOCABULARY, 3, long)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000 < long.stat().st_size


def test_a_file_that_cannot_be_read_and_a_variable_that_is_not_set_are_named(monkeypatch, tmp_path):
    with pytest.raises(CapbenchError, match=r"cannot read the word vectors .*absent\.txt"):
        word_vectors(VOCABULARY, 3, tmp_path / "absent.txt")
    with pytest.raises(CapbenchError, match="cannot read the word vectors"):
        word_vectors(VOCABULARY, 3, tmp_path)
    monkeypatch.delenv("CAPBENCH_GLOVE", raising=False)
    monkeypatch.delenv("CAPBENCH_WORD2VEC", raising=False)
    with pytest.raises(CapbenchError, match="set CAPBENCH_GLOVE to a file of word vectors"):
        file_of("CAPBENCH_GLOVE")
    with pytest.raises(CapbenchError, match="set CAPBENCH_WORD2VEC or CAPBENCH_GLOVE to"):
        file_of("CAPBENCH_WORD2VEC", "CAPBENCH_GLOVE")
    monkeypatch.setenv("CAPBENCH_GLOVE", str(tmp_path / "glove.txt"))
    assert file_of("CAPBENCH_WORD2VEC", "CAPBENCH_GLOVE") == tmp_path / "glove.txt"
    monkeypatch.setenv("CAPBENCH_WORD2VEC", str(tmp_path / "word2vec.txt"))
    assert file_of("CAPBENCH_WORD2VEC", "CAPBENCH_GLOVE") == tmp_path / "word2vec.txt"


def test_the_dimension_is_known_from_the_first_line_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LONGEST", 40)
    assert dimension_of(written(tmp_path, "v.txt", "the 0.5 -1e-3 2\n" + "not a vector\n" * 100)) == 3
    for name, content, message in (
        ("absent.txt", None, "cannot read the word vectors"),
        ("v.txt", "a few words\n", r"v\.txt, line 1: not a word and its numbers"),
        ("v.txt", "", r"v\.txt, line 1: not a word and its numbers"),
        ("v.bin", "w3 1 2 3\n", "does not begin with 'count dimension'"),
        ("v.txt.gz", b"\x1f\x8b\x08\x00", "compressed; unpack"),
    ):
        path = tmp_path / name if content is None else written(tmp_path, name, content)
        with pytest.raises(CapbenchError, match=message):
            dimension_of(path)
