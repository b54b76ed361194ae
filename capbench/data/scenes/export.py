"""The scenes as files, laid out like a data set that a user brings."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from capbench.base.files import atomic_write
from capbench.data.captions import CaptionDataset
from capbench.data.scenes import scenes

SIZES = {"train": 3000, "val": 250, "test": 500}  # those of `scenes()`


def export_scenes(folder: Path, images: int | None = None) -> Path:
    """Write the scenes into `folder`, at most `images` of each split; returns the path of the split file.

    The folder then holds `images/<split>/<number>.png`, `dataset_scenes.json` in Karpathy's format, and
    `captions.txt`, the captions of the test images, one a line.
    Raises CapbenchError naming a file that cannot be written.
    """
    dataset = scenes(**{split: size if images is None else min(size, images) for split, size in SIZES.items()})
    for index, name in enumerate(dataset.image_names):
        picture = Image.fromarray(dataset.images[index])
        atomic_write(folder / "images" / f"{name}.png", partial(picture.save, format="PNG"))
    entries = [_entry(dataset, image) for image in range(len(dataset.images))]
    tests = [sentence["raw"] for entry in entries if entry["split"] == "test" for sentence in entry["sentences"]]
    atomic_write(folder / "captions.txt", "".join(f"{line}\n" for line in dict.fromkeys(tests)).encode())
    split_file = folder / "dataset_scenes.json"
    atomic_write(split_file, json.dumps({"dataset": "scenes", "images": entries}).encode())
    return split_file


def _entry(dataset: CaptionDataset, image: int) -> dict[str, Any]:
    """An image and its captions as Karpathy's split files have them."""
    split, _, number = dataset.image_names[image].partition("/")
    captions = np.flatnonzero(dataset.image_of_caption == image).tolist()
    return {
        "filepath": split,
        "filename": f"{number}.png",
        "imgid": image,
        "split": split,
        "sentids": captions,
        "sentences": [
            {"tokens": dataset.tokens[caption], "raw": dataset.captions[caption], "imgid": image, "sentid": caption}
            for caption in captions
        ],
    }
