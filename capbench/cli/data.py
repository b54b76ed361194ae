"""`capbench datasets` and `capbench features`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from capbench.cli.options import Count, Crop, Dataset, Encoder
from capbench.cli.output import say


def datasets() -> None:
    """List the data sets: their sizes and where they are, or what to download and where to put it."""
    from capbench.data.datasets import describe

    for name, images, captions, splits, place in describe():
        say(name)
        if images != "-":
            say(f"  {images} images, {captions} captions: {splits}")
        say(f"  {place}")


def export(dataset: Literal["scenes"], folder: Path, /, *, images: Count | None = None) -> None:
    """Write the embedded scenes as files, to have pictures to caption, search and align without any download.

    Parameters
    ----------
    dataset
        The data set to write.
    folder
        Gets `images/<split>/*.png`, `dataset_scenes.json` (Karpathy's format) and `captions.txt` (of the test images).
    images
        At most this many images of each split; all if not given.
    """
    from capbench.data.scenes.export import export_scenes

    say(export_scenes(folder, images))


def features(dataset: Dataset, /, *, encoder: Encoder | None = None, crop: Crop = "1C", tolerant: bool = False) -> None:
    """Compute the features of a data set, or open them if they are stored already.

    Parameters
    ----------
    dataset
        The data set.
    encoder
        The network, named as in torchvision; mobilenet_v2 for photographs and the scenes' own for scenes if not given.
    crop
        What the network sees: the centre (1C), the mean of ten crops (10C), the whole image, its mean over two sizes
        and mirrored (views), or 20 regions from one of the other sources.
    tolerant
        Leave out the images that cannot be decoded and list them; without it the first one stops the command.
    """
    from capbench.data.datasets import load_dataset
    from capbench.runs.harness import DEFAULT_ENCODER, ENCODERS
    from capbench.vision import encoders
    from capbench.vision import features as store
    from capbench.vision.regions import PROVIDERS

    output: encoders.Output = "regions" if crop in PROVIDERS else "vector"
    network = encoders.Encoder(encoder or ENCODERS.get(dataset, DEFAULT_ENCODER), output)
    stored = store.features(load_dataset(dataset), network, crop, tolerant=tolerant)
    say(f"{stored.array.shape} {stored.array.dtype} in {stored.path}")
    for name in stored.skipped:
        say(f"left out: {name}")
