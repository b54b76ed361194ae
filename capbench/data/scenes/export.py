"""The scenes as files, laid out like a data set that a user brings."""

from __future__ import annotations

import json
from collections.abc import Mapping
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

    The folder then holds `images/<split>/<number>.png`, `dataset_scenes.json` in Karpathy's format, `captions.txt`, the
    captions of the test images, one a line, and the true boxes in pixels: in `regions.json` those of each image, as
    `--region-provider file` reads them, in `phrases.json` those of each noun phrase of each caption, with its first
    token and the one after its last.
    Raises CapbenchError naming a file that cannot be written.
    """
    dataset = scenes(**{split: size if images is None else min(size, images) for split, size in SIZES.items()})
    for index, name in enumerate(dataset.image_names):
        picture = Image.fromarray(dataset.images[index])
        atomic_write(folder / "images" / f"{name}.png", partial(picture.save, format="PNG"))
    entries = [_entry(dataset, image) for image in range(len(dataset.images))]
    tests = [sentence["raw"] for entry in entries if entry["split"] == "test" for sentence in entry["sentences"]]
    atomic_write(folder / "captions.txt", "".join(f"{line}\n" for line in dict.fromkeys(tests)).encode())
    names = [f"{name}.png" for name in dataset.image_names]
    _write(folder / "regions.json", dict(zip(names, dataset.objects or (), strict=True)))
    _write(folder / "phrases.json", {name: _phrases(dataset, image) for image, name in enumerate(names)})
    split_file = folder / "dataset_scenes.json"
    _write(split_file, {"dataset": "scenes", "images": entries})
    return split_file


def _write(path: Path, content: Mapping[str, Any]) -> None:
    atomic_write(path, json.dumps(content).encode())


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


def _phrases(dataset: CaptionDataset, image: int) -> list[dict[str, Any]]:
    """The noun phrases of an image's captions, each with the boxes of the things that it names."""
    return [
        {
            "sentid": caption,
            "start": phrase.start,
            "end": phrase.end,
            "phrase": " ".join(dataset.tokens[caption][phrase.start : phrase.end]),
            "boxes": phrase.boxes,
        }
        for caption in np.flatnonzero(dataset.image_of_caption == image).tolist()
        for phrase in (dataset.phrases or ())[caption]
    ]
