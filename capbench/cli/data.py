"""`capbench datasets` and `capbench features`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from capbench.cli.options import Count, Dataset, Encoder, RegionProvider, View
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


def features(
    dataset: Dataset,
    /,
    *,
    encoder: Encoder | None = None,
    view: View = "1C",
    region_provider: RegionProvider | None = None,
    tolerant: bool = False,
) -> None:
    """Compute the features of a data set, or open them if they are stored already.

    Ctrl-C keeps what is done, and the same command resumes.

    Parameters
    ----------
    dataset
        The data set.
    encoder
        The network: torchvision's names, or timm/<name>. If not given: timm/tf_efficientnet_lite2 for photographs,
        the scenes' own for scenes.
    view
        What the network sees: the centre (1C), the mean of ten crops (10C), the whole image squeezed to a square, or
        the mean of that image and its mirror at two sizes (views).
    region_provider
        Compute the features of 20 regions instead, with boxes from a fixed grid (multiscale), the scenes' own objects,
        the data set's regions.json (file), or a detector.
    tolerant
        Leave out the images that cannot be decoded and list them; without it the first one stops the command.
    """
    from capbench.data.datasets import load_dataset
    from capbench.runs.harness import default_encoder
    from capbench.vision import encoders
    from capbench.vision import features as store

    output: encoders.Output = "regions" if region_provider else "vector"
    network = encoders.Encoder(encoder or default_encoder(dataset), output)
    stored = store.features(load_dataset(dataset), network, view, region_provider, tolerant=tolerant, progress=True)
    say(f"{stored.array.shape} {stored.array.dtype} in {stored.path}")
    if network.licence:
        say(f"timm states that its weights of {network.name} have the licence {network.licence}")
    for name in stored.skipped:
        say(f"left out: {name}")
