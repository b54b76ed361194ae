"""Word vectors from a file: GloVe's text, or word2vec's text or binary form.

Files are read as a stream; only words of the vocabulary are kept. GloVe has a word and its numbers on each line.
word2vec has a first line "count dimension", then such lines; a file named .bin has for each word the word, a space and
its numbers as little-endian float32, with or without a line break.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from capbench.base.cache import path_from
from capbench.base.errors import CapbenchError
from capbench.base.files import sha256
from capbench.data.vocabulary import Vocabulary

LONGEST = 1 << 20  # bytes of a line, or of a word in a binary file
CHUNK = 1 << 20  # bytes read at a time
_HEADER = re.compile(rb"(\d{1,18})\s+(\d{1,9})\s*$")
_COMPRESSED = (b"\x1f\x8b", b"PK\x03\x04")

Entry = tuple[bytes, bytes, str]  # a word, its numbers (text, or bytes of float32) and their place in the file


def file_of(*variables: str) -> Path:
    """The file of vectors that the first of these environment variables to be set names.

    Raises CapbenchError, saying what to set, if none is.
    """
    paths = [path for variable in variables if (path := path_from(variable)) is not None]
    if not paths:
        raise CapbenchError(
            f"set {' or '.join(variables)} to a file of word vectors (GloVe's or word2vec's), or choose another preset"
        )
    return paths[0]


def dimension_of(path: Path) -> int:
    """The length of the vectors in a file, from its first line. Raises CapbenchError for a file that has none there."""
    with _opened(path) as file:
        header, first = _first_line(file, path)
    if header is not None:
        return int(header[2])
    numbers = sum(1 for _ in takewhile(_number, reversed(first.split()[1:])))  # a word may have several parts
    if not numbers:
        raise CapbenchError(f"{path}, line 1: not a word and its numbers; is it a file of word vectors?")
    return numbers


def word_vectors(vocabulary: Vocabulary, dimension: int, path: Path) -> tuple[Float[Tensor, "number dimension"], str]:
    """The vectors of a vocabulary, a row for each number, and a note that names the file.

    Special words, and words absent from the file, get normal noise of deviation 0.02 from torch's generator. The first
    of several vectors of a word counts. Raises CapbenchError naming the file, and the line or word, for a vector of
    another length or that is not finite, a file that is cut short, compressed or of another kind, and one without a
    word of the vocabulary.
    """
    vectors = 0.02 * torch.randn(len(vocabulary), dimension)
    wanted = {word.encode(): number for word, number in vocabulary.numbers.items()}
    with _opened(path) as file:
        for word, values, place in _entries(file, dimension, path):
            if word in wanted:
                vector = _floats(values, dimension, path.suffix == ".bin", f"{path}, {place}", word.decode())
                if vector is not None:
                    vectors[wanted.pop(word)] = vector
    count = len(vocabulary.numbers) - len(wanted)
    if not count:
        raise CapbenchError(f"no word of the vocabulary is in {path}; is it a file of word vectors in this language?")
    return (
        vectors,
        f"word vectors of {count:,} words from {path.name}, SHA-256 {sha256(path)}; {dimension} numbers each",
    )


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, for reading. Raises CapbenchError naming it where it cannot be read."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise CapbenchError(f"cannot read the word vectors {path}: {error.strerror or error}") from error


def _first_line(file: IO[bytes], path: Path) -> tuple[re.Match[bytes] | None, bytes]:
    """The first line, and its match if it is "count dimension". Raises CapbenchError for an impossible one."""
    first = file.readline(LONGEST)
    if first.startswith(_COMPRESSED):
        raise CapbenchError(f"{path} is compressed; unpack it first")
    header = _HEADER.match(first)
    if header is None and path.suffix == ".bin":
        raise CapbenchError(f"{path} does not begin with 'count dimension', as a binary file of word2vec does")
    return header, first


def _entries(file: IO[bytes], dimension: int, path: Path) -> Iterator[Entry]:
    """Every word of a file of any of the three kinds. Raises CapbenchError for an impossible first line."""
    header, first = _first_line(file, path)
    binary = path.suffix == ".bin"
    if header is None:
        file.seek(3 if first.startswith(b"\xef\xbb\xbf") else 0)
        yield from _text(file, path, 1, None)
        return
    count, width = int(header[1]), int(header[2])
    if width != dimension:
        raise CapbenchError(f"{path}, line 1: vectors of {width} numbers, and {dimension} are needed; use another file")
    least = count * (4 * width + 1 if binary else 2 * width + 1)
    there = path.stat().st_size - len(first)
    if there < least:
        raise CapbenchError(
            f"{path} is cut short, or its first line is wrong: {count:,} words of {width} numbers need at least "
            f"{least:,} bytes, and {there:,} are there; fetch it again"
        )
    yield from _binary(file, path, count, width) if binary else _text(file, path, 2, count)


def _text(file: IO[bytes], path: Path, start: int, count: int | None) -> Iterator[Entry]:
    """The lines from number `start` on. Raises CapbenchError unless `count` of them, if known, are not empty."""
    number, words = start, 0
    while line := file.readline(LONGEST):
        if b"\0" in line or len(line) == LONGEST:
            raise CapbenchError(f"{path}, line {number}: no text; if the file is word2vec's binary form, name it .bin")
        parts = line.split(None, 1)
        if parts:
            yield parts[0], b"".join(parts[1:]), f"line {number}"
            words += 1
        number += 1
    if count is not None and words != count:
        raise CapbenchError(f"{path} has {words:,} words, and its first line says {count:,}; fetch it again")


def _binary(file: IO[bytes], path: Path, count: int, width: int) -> Iterator[Entry]:
    size, buffer, at = 4 * width, b"", 0
    for number in range(1, count + 1):
        while (space := buffer.find(b" ", at)) < 0 or len(buffer) < space + 1 + size:
            if space < 0 and len(buffer) - at > LONGEST:
                raise CapbenchError(f"{path}, word {number:,}: no space in {LONGEST:,} bytes; is it word2vec's file?")
            more = file.read(CHUNK)
            if not more:
                raise CapbenchError(f"{path} is cut short: it ends in word {number:,} of {count:,}; fetch it again")
            buffer, at = buffer[at:] + more, 0
        yield buffer[at:space].lstrip(b"\n"), buffer[space + 1 : space + 1 + size], f"word {number:,}"
        at = space + 1 + size
    if (buffer[at:] + file.read(CHUNK)).strip(b"\n"):
        raise CapbenchError(f"{path} goes on after the {count:,} words that its first line says; fetch it again")


def _floats(values: bytes, dimension: int, binary: bool, place: str, word: str) -> Tensor | None:
    """The vector of a word; None if the word is the first part of a longer one ("at home@example.org 0.1 ...")."""
    if binary:
        vector = torch.from_numpy(np.frombuffer(values, "<f4").astype(np.float32))
    else:
        numbers = values.split()
        if len(numbers) > dimension and not _number(numbers[0]):
            return None
        if len(numbers) != dimension:
            raise CapbenchError(f"{place}: {len(numbers)} numbers for {word!r}, and {dimension} are needed")
        try:
            vector = torch.tensor([float(number) for number in numbers])
        except ValueError as error:
            raise CapbenchError(f"{place}: {word!r} has something else than numbers: {error}") from error
    if not bool(vector.isfinite().all()):
        raise CapbenchError(f"{place}: the vector of {word!r} is not finite; fetch the file again")
    return vector


def _number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
