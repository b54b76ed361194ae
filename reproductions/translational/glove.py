"""Word vectors from a file in GloVe's format: a word and its numbers on each line."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from capbench.data.vocabulary import Vocabulary
from capbench.errors import CapbenchError
from capbench.files import sha256

VARIABLE = "CAPBENCH_GLOVE"


def glove_vectors(vocabulary: Vocabulary, dimension: int) -> tuple[Float[Tensor, "word dimension"], str]:
    """The vectors of a vocabulary, from the text file that $CAPBENCH_GLOVE names (glove.6B.300d.txt, say), and a note
    of which file it was.

    Words that are not in the file, and the special ones, get small normal noise from torch's generator. Raises
    CapbenchError without the file, and for a line of another length, naming it.
    """
    place = os.environ.get(VARIABLE)
    if not place:
        raise CapbenchError(
            f"set {VARIABLE} to a file of {dimension}-dimensional GloVe vectors, or choose another preset"
        )
    vectors = 0.02 * torch.randn(len(vocabulary), dimension)
    found = 0
    try:
        with Path(place).open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                word, *values = line.rstrip().split(" ")
                if word not in vocabulary.numbers:
                    continue
                if len(values) != dimension:
                    raise CapbenchError(
                        f"{place}, line {number}: {len(values)} numbers for {word!r}, the preset needs {dimension}"
                    )
                vectors[vocabulary.numbers[word]] = torch.tensor([float(value) for value in values])
                found += 1
    except (OSError, ValueError) as error:
        raise CapbenchError(f"cannot read the word vectors {place}: {error}") from error
    if not found:
        raise CapbenchError(f"no word of the vocabulary is in {place}; is it a file of GloVe vectors?")
    return vectors, f"word vectors of {found:,} words from {Path(place).name}, SHA-256 {sha256(Path(place))}"
