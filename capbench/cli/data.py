"""`capbench datasets` and `capbench features`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from capbench.base.errors import CapbenchError
from capbench.cli.options import (
    Count,
    Dataset,
    Encoder,
    FeatureFormat,
    Fetched,
    RegionProvider,
    Split,
    Tokenizer,
    View,
)
from capbench.cli.output import say


def datasets() -> None:
    """List the data sets, yours after the known ones: sizes and places, or what to download and where to put it.

    A data set of your own is a folder with images and one file: `captions.csv` with the columns image, caption and
    split (train, val or test), a row for each caption; `captions.jsonl` with an object of the same keys on each line,
    where the caption may be a list; or a split file `dataset*.json` in Karpathy's format. Images lie in `images/` or
    beside that file, and their names are relative to there. Every `--dataset` takes the folder's path, or its name once
    it is added.
    """
    from capbench.data.datasets import describe

    for name, images, captions, splits, place in describe():
        say(name)
        if images != "-":
            say(f"  {images} images, {captions} captions: {splits}")
        say(f"  {place}")


def fetch(name: Fetched, /, *, to: Path | None = None) -> None:
    """Download what may be downloaded, check it, and put it where `--dataset` finds it; say whom to ask for the rest.

    COCO comes whole (21 GB, and 35 GB while it is unpacked), and so does GloVe. Flickr8K and Flickr30K come with their
    split file; their photographs are given by the authors to those who ask, and are unpacked from the archive that they
    send. An archive that lies in the data set's folder already is checked and used instead of a download: a machine
    without a network needs only a copy. Ctrl-C keeps what has come, and the same command goes on from there.

    Parameters
    ----------
    name
        The data set; `glove` for the word vectors.
    to
        The folder of the data sets: this one gets coco/, flickr8k/, ... CAPBENCH_DATA if not given.
    """
    from capbench.base.cache import path_from
    from capbench.data.fetch import fetch as bring

    standard = path_from("CAPBENCH_DATA")
    folder = to or standard
    if folder is None:
        raise CapbenchError("nothing says where the data sets are to lie: give --to FOLDER, or set CAPBENCH_DATA")
    for line in bring(name, folder):
        say(line)
    if standard is None or folder.resolve() != standard.resolve():
        say(f"for the other commands: export CAPBENCH_DATA={shlex.quote(str(folder.resolve()))}")


def check(dataset: Dataset, /, *, sample: Count | None = None) -> None:
    """Check a data set: images that are missing, cannot be decoded or are not named, counts, and the fingerprint.

    Exits with 1 if an image is missing or cannot be decoded, or if a known data set is not the published one.

    Parameters
    ----------
    dataset
        A known data set, one that `capbench datasets add` has registered, or the path of a folder.
    sample
        Decode this many images, the same ones each time; all if not given.
    """
    from capbench.base.errors import listed
    from capbench.data.checking import check as look
    from capbench.data.datasets import summary

    found = look(dataset, sample, progress=True)
    for line in summary(found.dataset):
        say(line)
    say(f"fingerprint {found.fingerprint}")
    say(f"{found.decoded:,} images decoded, {len(found.undecodable):,} cannot be")
    for fault in found.undecodable:
        say(fault)
    for images, words in ((found.missing, "are missing"), (found.extra, "are there that no caption describes")):
        if images:
            say(f"{len(images):,} images {words}: {listed(images)}")
    if found.differing:
        say(f"it is not the published data set: {found.differing}")
    if not found.whole:
        sys.exit(1)


def add_dataset(name: str, folder: Path, /, *, tokenizer: Tokenizer | None = None) -> None:
    """Check a data set of your own and remember its folder by a name.

    Parameters
    ----------
    name
        The name for `--dataset`: a-z, 0-9, _ and -.
    folder
        The folder, or the file in it that holds the captions.
    tokenizer
        How captions and queries become words: letters and digits of any script (unicode), what stands between white
        space (whitespace), or a-z and 0-9 alone (karpathy). If not given: unicode for a table; for a split file, the
        one that gives its tokens.
    """
    from capbench.data.datasets import check_training_images, summary
    from capbench.data.folders import read_own
    from capbench.data.registered import Own, check_name, register

    check_name(name)
    dataset = read_own(Own(name, folder, tokenizer or ""))
    check_training_images(dataset)
    for line in summary(dataset):
        say(line)
    say(f"{name} stands in {register(name, folder, tokenizer or '')}; use it with --dataset {name}")


def remove(name: str, /) -> None:
    """Forget the name of a data set of your own; its folder stays as it is.

    Parameters
    ----------
    name
        A name that `capbench datasets add` has registered.
    """
    from capbench.data.registered import unregister

    say(f"{name} is gone from {unregister(name)}; its folder is as it was")


def import_hugging_face(
    source: str,
    folder: Path,
    /,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    split_column: str | None = None,
    split: Split | None = None,
) -> None:
    """Write a data set of Hugging Face as a folder that `--dataset` takes: `images/` and `captions.jsonl`.

    Needs the extra: pip install 'capbench[hf]'.

    Parameters
    ----------
    source
        OWNER/NAME on the hub, a folder of `save_to_disk`, or a folder of parquet or arrow files.
    folder
        The folder to write; it must not be there yet.
    image_column
        The column of images; the only one if not given.
    caption_column
        The column of captions, one or a list for each image; caption, captions, text or sentences if not given.
    split_column
        A column that says train, val or test; `split` if there is one, else the names of the data set's own splits.
    split
        Put every image into this split.
    """
    from capbench.data.datasets import summary
    from capbench.data.folders import read_own
    from capbench.data.hugging_face import Columns, import_dataset
    from capbench.data.registered import Own

    if split is not None and split_column is not None:
        raise CapbenchError("give --split, which puts all images into one split, or --split-column, not both")
    import_dataset(source, folder, Columns(image_column, caption_column, split_column), split)
    for line in summary(read_own(Own(folder.resolve().name, folder))):
        say(line)
    place = shlex.quote(str(folder))
    say(f"it is in {folder}; use it with --dataset {place}/, or name it with capbench datasets add NAME {place}")


def export(dataset: Literal["scenes"], folder: Path, /, *, images: Count | None = None) -> None:
    """Write the embedded scenes as files, to have pictures to caption, search and align without any download.

    Parameters
    ----------
    dataset
        The data set to write.
    folder
        Gets `images/<split>/*.png`, `dataset_scenes.json` (Karpathy's format), `captions.txt` (of the test images), and
        the true boxes: `regions.json` (of each image) and `phrases.json` (of each noun phrase).
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
    view: View | None = None,
    region_provider: RegionProvider | None = None,
    tolerant: bool = False,
    source: Annotated[Path | None, Parameter(name="--from")] = None,
    format: FeatureFormat | None = None,
    name: str | None = None,
) -> None:
    """Compute the features of a data set, or open them if they are stored already; or import those of others.

    Ctrl-C keeps what is computed, and the same command resumes. An import is all or nothing.

    Parameters
    ----------
    dataset
        A known data set, one that `capbench datasets add` has registered, or the path of a folder.
    encoder
        The network: torchvision's names, or timm/<name>. If not given: timm/tf_efficientnet_lite2 for photographs,
        the scenes' own for scenes.
    view
        What the network sees: the centre (1C), the mean of ten crops (10C), the whole image squeezed to a square, or
        the mean of that image and its mirror at two sizes (views). 1C if not given.
    region_provider
        Compute the features of 20 regions of the whole image instead, with boxes from a fixed grid (multiscale), the
        scenes' own objects, the data set's regions.json (file), or a detector.
    tolerant
        Leave out the images that cannot be decoded and list them; without it the first one stops the command.
    source
        Import features from this folder instead of computing them. Ids and captions are checked against the data set;
        its photographs need not be there.
    format
        The layout of the folder: VSE++'s and SCAN's `*_ims.npy` with `*_caps.txt` (scan), bottom-up attention's .tsv
        files or folders of arrays (butd), or HDF5 (h5).
    name
        The imported features are then `--encoder file/NAME`; the folder's name if not given.
    """
    if source is not None or format is not None or name is not None:
        if source is None or format is None:
            raise CapbenchError("an import needs both --from FOLDER and --format scan, butd or h5")
        if encoder is not None or region_provider is not None or tolerant or view is not None:
            raise CapbenchError("--from imports features: leave out --encoder, --view, --region-provider, --tolerant")
        if not source.exists():
            raise CapbenchError(f"there is no folder {source}; name the one that holds the features")
        _import(dataset, source, format, name)
        return
    if region_provider is not None and view is not None:
        raise CapbenchError(f"regions are of the whole image: give --region-provider or --view {view}, not both")
    from capbench.data.datasets import default_encoder, load_dataset
    from capbench.runs.materials import encoder_on_device
    from capbench.vision import features as store

    pictures = load_dataset(dataset)
    network = encoder_on_device(encoder or default_encoder(dataset), "regions" if region_provider else "vector")
    stored = store.features(pictures, network, view or "1C", region_provider, tolerant=tolerant, progress=True)
    say(f"{stored.array.shape} {stored.array.dtype} in {stored.path}")
    if network.licence:
        say(f"timm states that its weights of {network.name} have the licence {network.licence}")
    for name in stored.skipped:
        say(f"left out: {name}")


def _import(dataset: str, folder: Path, format: str, name: str | None) -> None:
    from capbench.data.datasets import load_captions
    from capbench.vision.imported import import_features

    made = import_features(load_captions(dataset), folder, format, name, progress=True)
    for line in made.said:
        say(line)
    say(f"{list(made.shape)} float32 in {made.path}")
    say(f"train on them with: capbench run PAPER --dataset {shlex.quote(dataset)} --encoder {made.encoder}")
