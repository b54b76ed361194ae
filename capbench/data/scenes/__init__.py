"""The embedded data set: drawn scenes whose captions come with the true box of every phrase.

A scene is a canvas of 64 x 64 pixels in one of six settings, its background (snow, sand, night, water, grass, stone),
with two to four things that never overlap, each of a shape, colour, size and place. Later things often share colour or
shape with an earlier one, so colour must be bound to shape. The five captions of a scene follow a small grammar with
synonyms; all are true, of 5 to 16 words, and leave things out (large ones less often). A phrase names exactly the
things that fit its words: "a star" is said only if there is one star, and "two red circles" has two boxes. "A picture
of", "in the top left corner" and "on snow" name nothing drawn and are no phrases.

A caption seldom fits another image, since the hardest negative of a batch would then be a true match: of the 15,000
training captions of seed 0, in batches of 128 of nearly equal length, 4.8 % describe another image of their batch.
Among the 500 test images, a reader who understands every word (and guesses among the images that fit) ranks the right
one first for 88 % of the captions; for 77 % without relations and places, for 64 % without settings too.

The same seed gives the same bytes everywhere: all geometry is in integers, and the only generator is Python's
`Random(int).random()`, whose sequence the language guarantees.
"""

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
from capbench.data.scenes.language import CAPTIONS, describe


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

    Image `i` of a split depends on seed, split and `i` alone, so a smaller set begins a larger one.
    Raises CapbenchError for a negative size or no image at all.

    >>> scenes(train=1, val=0, test=0).captions[0]
    'There is a triangle right of an orange square on grass.'
    """
    sizes = {"train": train, "val": val, "test": test}
    for split, size in sizes.items():
        if size < 0 or not any(sizes.values()):
            raise CapbenchError(f"scenes: {split} has {size} images; give sizes of 0 or more, not all 0")
    places = [(split, index) for split, size in sizes.items() for index in range(size)]
    drawn = [draw_scene(Dice(seed, "scenes", *place)) for place in places]
    described = [
        description
        for scene, place in zip(drawn, places, strict=True)
        for description in describe(scene, Dice(seed, "captions", *place))
    ]
    return CaptionDataset(
        name="scenes",
        images=SceneImages(drawn),
        image_names=tuple(f"{split}/{index:05d}" for split, index in places),
        image_ids=tuple(range(len(places))),
        split_of_image=tuple(split for split, _ in places),
        captions=tuple(caption.text for caption in described),
        tokens=tuple(caption.tokens for caption in described),
        caption_ids=tuple(range(len(described))),
        image_of_caption=np.arange(len(described), dtype=np.int64) // CAPTIONS,
        phrases=tuple(caption.phrases for caption in described),
    )
