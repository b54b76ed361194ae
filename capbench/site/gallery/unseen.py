"""The test pictures of a run's data, as its model sees them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.data.captions import CaptionDataset, Images, Split
from capbench.data.datasets import load_dataset
from capbench.data.images import ImageFolder
from capbench.data.scenes import SceneImages
from capbench.runs.loaded import Trained
from capbench.tools.pictures import Seen
from capbench.vision.features import features, stored_features
from capbench.vision.imported import imported_features
from capbench.vision.networks import IMPORTED
from capbench.vision.regions import Boxes, Provider, region_boxes

MOST = 1000  # test pictures that are looked through: the first ones of a larger split


@dataclass(frozen=True, eq=False)
class Unseen:
    """The test pictures of a data set and their captions."""

    whole: CaptionDataset
    split: Split  # of `whole`

    @classmethod
    def of(cls, name: str) -> Unseen:
        """Those of a data set. Raises CapbenchError where it, or one of these pictures, is not at hand."""
        whole = load_dataset(name)
        split = whole.split("test")
        test = cls(whole, split if len(split.image_index) <= MOST else split.first(MOST))
        test.part.images.check()
        return test

    @cached_property
    def part(self) -> CaptionDataset:
        """The test pictures as a data set of their own: their features need no other picture."""
        whole, images, captions = self.whole, self.split.image_index.tolist(), self.split.caption_index.tolist()
        return replace(
            whole,
            images=_only(whole.images, [whole.image_names[i] for i in images], images),
            image_names=tuple(whole.image_names[i] for i in images),
            image_ids=tuple(whole.image_ids[i] for i in images),
            split_of_image=("test",) * len(images),
            captions=self.split.captions,
            tokens=self.split.tokens,
            caption_ids=tuple(whole.caption_ids[i] for i in captions),
            image_of_caption=self.split.image_of_caption,
            phrases=None if whole.phrases is None else tuple(whole.phrases[i] for i in captions),
        )

    @cached_property
    def captions_of(self) -> list[list[int]]:
        """The captions of each picture."""
        captions: list[list[int]] = [[] for _ in self.part.image_names]
        for caption, image in enumerate(self.part.image_of_caption.tolist()):
            captions[image].append(caption)
        return captions

    def boxes(self, provider: Provider) -> Boxes:
        """The regions of all pictures of the data set, made once."""
        if provider not in self._boxes:
            self._boxes[provider] = region_boxes(self.whole, provider)
        return self._boxes[provider]

    @cached_property
    def _boxes(self) -> dict[str, Boxes]:
        return {}

    @cached_property
    def pixels(self) -> str:
        """The fingerprint of the pictures."""
        return self.part.images.fingerprint


def _only(images: Images, names: list[str], index: list[int]) -> Images:
    if isinstance(images, ImageFolder):
        return ImageFolder(images.root, names)
    if isinstance(images, SceneImages):
        return SceneImages([images.scenes[i] for i in index])
    raise CapbenchError(f"pictures of the type {type(images).__name__} have no gallery")


def _only_boxes(boxes: Boxes | None, rows: NDArray[np.int64]) -> Boxes | None:
    return boxes and replace(boxes, array=boxes.array[rows], count=boxes.count[rows])


@dataclass(frozen=True, eq=False)
class Looked:
    """A model, the test pictures, and what it sees of them."""

    trained: Trained
    test: Unseen
    array: Float[np.ndarray, "image ... dim"]
    boxes: Boxes | None  # of the regions that it sees

    @classmethod
    def at(cls, trained: Trained, test: Unseen, learnt_from: str = "") -> Looked:
        """The features of the test pictures: of those that it learnt from where these are in the store, else new ones.

        `learnt_from` is the fingerprint of the former. Raises CapbenchError for weights that are not at hand, and where
        pictures, boxes or imported features have changed since.
        """
        recipe, job, rows = trained.recipe, trained.job, test.split.image_index
        if job.encoder.startswith(IMPORTED):
            imported = imported_features(test.whole, job.encoder, recipe.output)
            if learnt_from not in ("", imported.fingerprint):
                raise CapbenchError(f"{job.encoder} of {job.dataset} was imported anew since; train it again")
            return cls(trained, test, imported.array[rows], _only_boxes(imported.boxes, rows))
        known = stored_features(learnt_from) if learnt_from and not trained.encoder_weights else None
        if known is not None:
            boxes = None if recipe.region_provider is None else test.boxes(recipe.region_provider)
            today = {"images": test.whole.images.fingerprint, "boxes": boxes and boxes.fingerprint}
            if changed := [name for name, value in today.items() if known.made_of.get(name) != value]:
                raise CapbenchError(f"{' and '.join(changed)} of {job.dataset} have changed since; train it again")
            return cls(trained, test, known.array[rows], _only_boxes(boxes, rows))
        new = features(test.part, trained.encoder, recipe.view, recipe.region_provider)
        return cls(trained, test, new.array, new.boxes)

    def seen(self, images: list[int]) -> Seen:
        """Some of the pictures, as the tools take them."""
        names = tuple(Path(self.test.part.image_names[i]) for i in images)
        return Seen(names, self.array, tuple(images), ())

    def regions(self, image: int) -> Float[Tensor, "region dim"]:
        """The regions of a picture."""
        return torch.from_numpy(np.array(self.array[image]))
