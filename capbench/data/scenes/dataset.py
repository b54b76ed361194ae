"""The scenes data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from capbench.base.errors import CapbenchError
from capbench.base.files import fingerprint
from capbench.data.captions import CaptionDataset
from capbench.data.scenes.dice import Dice
from capbench.data.scenes.drawing import RENDER_VERSION, Scene, draw_scene, render
from capbench.data.scenes.language import CAPTIONS, Description, describe


class SceneImages:
    """The images of a scenes data set, drawn on access. `scenes` holds the things on each."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self.scenes = tuple(scenes)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as uint8 [64, 64, 3] RGB."""
        return render(self.scenes[index])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of every scene and the version of the drawing code."""
        return fingerprint(["scenes", RENDER_VERSION, [astuple(scene) for scene in self.scenes]])

    def check(self) -> None:
        """No image can be missing."""


def scenes(seed: int = 0, train: int = 3000, val: int = 250, test: int = 500) -> CaptionDataset:
    """The scenes: `train + val + test` images, five captions each, with phrases and their boxes.

    Image `i` of a split depends on seed, split and `i` alone, so a smaller set begins a larger one. `images` is a
    SceneImages. Raises CapbenchError for a negative or empty size.

    >>> scenes(train=1, val=0, test=0).captions[0]
    'There is a triangle right of an orange square on grass.'
    """
    sizes = {"train": train, "val": val, "test": test}
    for split, size in sizes.items():
        if size < 0 or not any(sizes.values()):
            raise CapbenchError(f"scenes: {split} has {size} images; give sizes of 0 or more, not all 0")
    names: list[str] = []
    splits: list[str] = []
    drawn: list[Scene] = []
    described: list[Description] = []
    for split, size in sizes.items():
        for index in range(size):
            drawn.append(draw_scene(Dice(seed, "scenes", split, index)))
            described += describe(drawn[-1], Dice(seed, "captions", split, index))
            names.append(f"{split}/{index:05d}")
            splits.append(split)
    return CaptionDataset(
        name="scenes",
        images=SceneImages(drawn),
        image_names=tuple(names),
        image_ids=tuple(range(len(names))),
        split_of_image=tuple(splits),
        captions=tuple(caption.text for caption in described),
        tokens=tuple(caption.tokens for caption in described),
        caption_ids=tuple(range(len(described))),
        image_of_caption=np.arange(len(described), dtype=np.int64) // CAPTIONS,
        phrases=tuple(caption.phrases for caption in described),
    )
