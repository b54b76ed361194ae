"""Search with a trained joint embedding: pictures for a sentence, captions for a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.data.batches import padded
from capbench.data.vocabulary import UNKNOWN
from capbench.runs.loaded import Trained, find_run
from capbench.tools.pictures import Seen

AT_ONCE = 500  # captions that are embedded together


@runtime_checkable
class JointEmbedding(Protocol):
    """A model that puts images and captions into one space, where the inner product is the similarity."""

    def embed_images(self, phi: Float[Tensor, "image feature"]) -> Float[Tensor, "image dim"]: ...

    def embed_captions(
        self, captions: Int[Tensor, "caption length"], lengths: Int[Tensor, " caption"]
    ) -> Float[Tensor, "caption dim"]: ...

    def similarity(
        self, images: Float[Tensor, "image dim"], captions: Float[Tensor, "caption dim"]
    ) -> Float[Tensor, "image caption"]: ...


class Ranked(NamedTuple):
    """What fits best, with its similarity, best first; and the words outside the vocabulary."""

    pictures: list[tuple[Path, float]]
    captions: list[tuple[str, float]]
    unknown: tuple[str, ...]


def retriever(run: Path | None, runs: Path) -> Trained:
    """The finished run in `run`, or the newest joint embedding under `runs`; see `find_run`."""
    advice = "capbench run vsepp"
    return find_run(run, runs, JointEmbedding, "joint embedding of images and captions", advice)


def images_of_sentence(trained: Trained, sentence: str, pictures: Seen, top: int) -> Ranked:
    """The `top` pictures that are most similar to a sentence.

    Raises CapbenchError for a sentence without a known word and for a `top` below 1.
    """
    query = trained.read(sentence)
    scores = similarities(trained, pictures, embedded(trained, [query.numbers]))[:, 0]
    return Ranked([(pictures.paths[i], float(scores[i])) for i in _best(scores, top)], [], query.unknown)


@dataclass(frozen=True)
class Candidates:
    """Captions to be found, embedded once."""

    lines: tuple[str, ...]  # distinct, each with a word that the model knows
    embedded: Float[Tensor, "caption dim"]
    unknown: tuple[str, ...]  # words of all lines outside the vocabulary


def lines_of(file: Path) -> list[str]:
    """The lines of a text file. Raises CapbenchError for a file that cannot be read."""
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CapbenchError(f"cannot read the captions {file}: {error}") from error


@torch.no_grad()
def candidates(trained: Trained, lines: Iterable[str], place: str) -> Candidates:
    """The lines that have a known word. Raises CapbenchError, naming the `place` of the lines, if there is none."""
    encoded = {line.strip(): trained.vocabulary.encode_text(line) for line in lines}
    words = trained.vocabulary.tokenize
    unknown = [w for line, n in encoded.items() for w, i in zip(words(line), n[1:-1], strict=True) if i == UNKNOWN]
    known = {line: numbers for line, numbers in encoded.items() if set(numbers[1:-1]) - {UNKNOWN}}
    if not known:
        raise CapbenchError(f"{place} holds no caption with a word that {trained.job} knows; write one a line")
    return Candidates(tuple(known), embedded(trained, list(known.values())), tuple(dict.fromkeys(unknown)))


def captions_of_image(trained: Trained, picture: Seen, captions: Candidates, top: int) -> Ranked:
    """The `top` captions that are most similar to a picture. Raises CapbenchError for a `top` below 1."""
    scores = similarities(trained, picture, captions.embedded)[0]
    return Ranked([], [(captions.lines[i], float(scores[i])) for i in _best(scores, top)], captions.unknown)


def _best(scores: Float[Tensor, " candidate"], top: int) -> list[int]:
    if top < 1:
        raise CapbenchError(f"top is {top}; ask for at least 1 result")
    return scores.argsort(descending=True, stable=True)[:top].tolist()


@torch.no_grad()
def embedded(trained: Trained, captions: Sequence[list[int]]) -> Float[Tensor, "caption dim"]:
    """Captions, given as numbers from START to END, in the space of the model."""
    chunks = (padded(captions[start : start + AT_ONCE]) for start in range(0, len(captions), AT_ONCE))
    return torch.cat([cast(JointEmbedding, trained.model).embed_captions(*chunk) for chunk in chunks])


@torch.no_grad()
def similarities(
    trained: Trained, pictures: Seen, captions: Float[Tensor, "caption dim"]
) -> Float[Tensor, "image caption"]:
    """How similar each picture is to each of some captions that are embedded."""
    model = cast(JointEmbedding, trained.model)
    return model.similarity(model.embed_images(pictures.features()), captions)
