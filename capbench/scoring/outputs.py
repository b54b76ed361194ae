"""What systems put out: captions, embeddings, similarities, and ranked lists; and the files that runs leave of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor

from capbench.base.files import atomic_write
from capbench.data.captions import Split
from capbench.scoring.coco_results import result, write_results
from capbench.scoring.ids import Key


@dataclass(frozen=True, eq=False)
class Captions:
    """One caption for each of some images."""

    captions: tuple[str, ...]
    images: tuple[tuple[Key, ...], ...]  # what names the image of each: an id, a file name, or both
    source: str = "the captions"  # in messages

    @classmethod
    def of(cls, split: Split, captions: tuple[str, ...]) -> Captions:
        """A caption for each image of a split, in its order."""
        dataset = split.dataset
        named = tuple((dataset.image_ids[i], dataset.image_names[i]) for i in split.image_index)
        return cls(captions, named)

    def save(self, folder: Path, split: str) -> Path:
        """Write `<split>-captions.json`, in COCO's results format; see `capbench.training.experiment.Outputs`.

        Raises CapbenchError when it cannot be written.
        """
        path = folder / f"{split}-captions.json"
        pairs = zip(self.images, self.captions, strict=True)
        write_results(path, [result(names[0], str(names[-1]), caption) for names, caption in pairs])
        return path


@dataclass(frozen=True, eq=False)
class Table:
    """Vectors with one row an image or caption."""

    rows: Float[Tensor, "row dim"]
    ids: tuple[Key, ...] | None = None  # None: in the order of the split file
    source: str = "the embeddings"  # in messages


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Images and captions in a joint space."""

    images: Table
    captions: Table

    @classmethod
    def of(
        cls, split: Split, kept: Int[np.ndarray, " caption"],
        images: Float[Tensor, "image dim"], captions: Float[Tensor, "caption dim"],
    ) -> Embeddings:  # fmt: skip
        """Those of the images of a split and of the captions with the numbers `kept`."""
        image_ids, caption_ids = _ids(split, kept)
        return cls(Table(images.cpu(), image_ids), Table(captions.cpu(), caption_ids))

    def save(self, folder: Path, split: str) -> Path:
        """Write `<split>-embeddings.safetensors`: images, captions, image_ids, caption_ids.

        Raises CapbenchError when it cannot be written.
        """
        tensors = {"images": self.images.rows, "captions": self.captions.rows}
        return _save(folder / f"{split}-embeddings.safetensors", tensors, self.images.ids, self.captions.ids)


@dataclass(frozen=True, eq=False)
class Similarity:
    """A whole matrix of similarities; higher is closer."""

    matrix: Float[Tensor, "image caption"]
    image_ids: tuple[Key, ...] | None = None  # None: in the order of the split file
    caption_ids: tuple[Key, ...] | None = None
    source: str = "the similarities"  # in messages

    @classmethod
    def of(cls, split: Split, kept: Int[np.ndarray, " caption"], matrix: Float[Tensor, "image caption"]) -> Similarity:
        """That of the images of a split and of the captions with the numbers `kept`."""
        return cls(matrix.cpu(), *_ids(split, kept))

    def save(self, folder: Path, split: str) -> Path:
        """Write `<split>-similarity.safetensors`: similarity, image_ids, caption_ids.

        Raises CapbenchError when it cannot be written.
        """
        path = folder / f"{split}-similarity.safetensors"
        return _save(path, {"similarity": self.matrix}, self.image_ids, self.caption_ids)


@dataclass(frozen=True, eq=False)
class Ranking:
    """Lists of candidates for queries, each list best first and perhaps cut off."""

    queries: np.ndarray  # [line], text
    candidates: np.ndarray  # [line], text
    scores: Float[np.ndarray, " line"]  # higher is closer
    source: str = "the ranking"  # in messages


Outputs = Captions | Embeddings | Similarity | Ranking
FILES = ("captions.json", "embeddings.safetensors", "similarity.safetensors")  # that runs leave, after `<split>-`


def remove_saved(folder: Path, split: str) -> None:
    """Remove the files of outputs from a run's folder, before they would be those of another model."""
    for name in FILES:
        (folder / f"{split}-{name}").unlink(missing_ok=True)


def _ids(split: Split, kept: Int[np.ndarray, " caption"]) -> tuple[tuple[Key, ...], tuple[Key, ...]]:
    dataset = split.dataset
    images = tuple(dataset.image_ids[i] for i in split.image_index)
    return images, tuple(dataset.caption_ids[i] for i in split.caption_index[kept])


def _save(
    path: Path, tensors: Mapping[str, Tensor], image_ids: tuple[Key, ...] | None, caption_ids: tuple[Key, ...] | None
) -> Path:
    ids = {"image_ids": image_ids, "caption_ids": caption_ids}
    numbers = {name: torch.tensor(values, dtype=torch.int64) for name, values in ids.items() if values is not None}
    atomic_write(path, save({**{name: tensor.contiguous() for name, tensor in tensors.items()}, **numbers}))
    return path
