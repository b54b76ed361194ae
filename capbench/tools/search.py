"""Search with a trained joint embedding: images for a sentence, captions for an image."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.base.files import atomic_write
from capbench.data.batches import padded
from capbench.data.images import decode
from capbench.data.vocabulary import tokenize
from capbench.runs.loaded import Trained, find_run, pictures_in

TILE = 224


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


def retriever(run: Path | None, runs: Path) -> Trained:
    """The finished run in `run`, or the newest one under `runs` that is a joint embedding; see `find_run`."""
    advice = "capbench run vsepp --dataset flickr8k"
    return find_run(run, runs, JointEmbedding, "joint embedding of images and captions", advice)


def images_of_sentence(trained: Trained, sentence: str, folder: Path, top: int) -> list[tuple[Path, float]]:
    """The `top` images of a folder (and those below it) that are most similar to a sentence, best first."""
    if not tokenize(sentence):
        raise CapbenchError(f"the sentence {sentence!r} has no word with a letter or digit")
    paths = pictures_in(folder)
    scores = _similarities(trained, paths, [sentence])[:, 0]
    best = scores.argsort(descending=True, stable=True)[:top].tolist()
    return [(paths[i], float(scores[i])) for i in best]


def captions_of_image(trained: Trained, image: Path, captions: Path, top: int) -> list[tuple[str, float]]:
    """The `top` lines of a text file that are most similar to an image, best first; empty lines are skipped."""
    try:
        lines = captions.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CapbenchError(f"cannot read the captions {captions}: {error}") from error
    sentences = [line.strip() for line in lines if tokenize(line)]
    if not sentences:
        raise CapbenchError(f"{captions} holds no caption; write one a line")
    scores = _similarities(trained, [image], sentences)[0]
    best = scores.argsort(descending=True, stable=True)[:top].tolist()
    return [(sentences[i], float(scores[i])) for i in best]


def contact_sheet(paths: list[Path], out: Path) -> None:
    """Draw images side by side, best first, into a PNG file."""
    sheet = Image.new("RGB", (TILE * len(paths), TILE), "white")
    for place, path in enumerate(paths):
        picture = Image.fromarray(decode(path))
        picture.thumbnail((TILE - 4, TILE - 4))
        sheet.paste(picture, (place * TILE + (TILE - picture.width) // 2, (TILE - picture.height) // 2))
    atomic_write(out, lambda file: sheet.save(file, "PNG"))


@torch.no_grad()
def _similarities(trained: Trained, paths: list[Path], sentences: list[str]) -> Float[Tensor, "image caption"]:
    model = cast(JointEmbedding, trained.model)
    ids, lengths = padded([trained.vocabulary.encode(tokenize(sentence)) for sentence in sentences])
    return model.similarity(model.embed_images(trained.features(paths)), model.embed_captions(ids, lengths))
