"""The data sets by name: the embedded scenes, the published ones in the user's files, and the user's own."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from capbench.base.cache import path_from
from capbench.base.errors import CapbenchError
from capbench.data.captions import SPLITS, CaptionDataset
from capbench.data.folders import read_own
from capbench.data.karpathy_split import Restval, read_karpathy_split
from capbench.data.registered import KNOWN, find, registered
from capbench.data.scenes import scenes


@dataclass(frozen=True)
class Source:
    """A data set that the user brings."""

    split_file: str
    counts: Mapping[str, int]  # images in each split of the published file; COCO's restval apart from train
    origin: str
    fingerprint: str = ""  # of the published file, if known


SOURCES = {
    "flickr8k": Source(
        "dataset_flickr8k.json",
        {"train": 6000, "val": 1000, "test": 1000},
        "images: Hodosh, Young and Hockenmaier (JAIR 2013), by their request form",
        "ae3df9a0f3c0dc7d9a742f908fea2f8085662606f13cfc58067fabb50161d233",
    ),
    "flickr30k": Source(
        "dataset_flickr30k.json",
        {"train": 29000, "val": 1014, "test": 1000},
        "images: Young et al. (TACL 2014), by their request form",
    ),
    "coco": Source(
        "dataset_coco.json",
        {"train": 82783, "val": 5000, "test": 5000, "restval": 30504},
        "images: train2014 and val2014 of cocodataset.org, as folders under images/",
    ),
}
SPLIT_FILES = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
SCENES_FINGERPRINT = "20d1145c806b2039006beb815a88d394205deee10fa9b0a76c8f86b0f3003a5d"  # of `scenes()`, by a test
WITHOUT_RESTVAL = "coco-norestval"  # COCO's files with the 82,783 training images alone
NAMES = KNOWN
NOT_PUBLISHED = "not the published split"  # how a note on such data begins


def load_dataset(name: str, data: Path | None = None) -> CaptionDataset:
    """A data set by name: "scenes", one with files under `data` (default CAPBENCH_DATA), or the user's own.

    Another name is a registered one or a folder (see `capbench.data.registered.find`), read by `read_own`.
    Raises CapbenchError that names missing files and where to put them.

    >>> load_dataset("scenes").splits
    ('train', 'val', 'test')
    """
    if own := find(name):
        return read_own(own)
    dataset = load_captions(name, data)
    try:
        dataset.images.check()
    except CapbenchError as error:
        raise CapbenchError(f"{error}; {_advice(name, _folder(name, data))}") from error
    return dataset


def load_captions(name: str, data: Path | None = None) -> CaptionDataset:
    """As `load_dataset`, but the photographs need not be there: for features that were imported.

    The files are `<data>/<name>/dataset_<name>.json` and the folder `<data>/<name>/images`. "coco" trains on COCO's
    restval images too, "coco-norestval" leaves them out. A `departure` from the published split is warned about and
    noted in `notes`. Raises CapbenchError for a missing split file.
    """
    if name == "scenes":
        return scenes()
    if own := find(name):
        return read_own(own, pictures=False)
    folder = _folder(name, data)
    split_file = folder / SOURCES[_family(name)].split_file
    if not split_file.is_file():
        raise CapbenchError(f"{split_file} is missing; {_advice(name, folder)}")
    restval: Restval = "drop" if name == WITHOUT_RESTVAL else "train"
    dataset = read_karpathy_split(split_file, folder / "images", name, restval)
    differing = departure(dataset)
    if differing:
        fault = f"{NOT_PUBLISHED} ({differing})"
        warnings.warn(f"{name} is {fault}: its numbers cannot be compared with published ones", stacklevel=3)
        dataset = replace(dataset, notes=(*dataset.notes, fault))
    return dataset


def check_trainable(dataset: CaptionDataset) -> None:
    """Raises CapbenchError for a data set without images of each split, or with fewer than two training images."""
    counts = Counter(dataset.split_of_image)
    lacking = [split for split in SPLITS if not counts[split]]
    if lacking:
        uses = "training takes train, the choice of an epoch val, the scores test"
        raise CapbenchError(f"{dataset.name} has no image in {' and '.join(lacking)}: {uses}; put images there")
    check_training_images(dataset)


def check_training_images(dataset: CaptionDataset) -> None:
    """Raises CapbenchError where there is one training image: it has no other to be told from."""
    if dataset.split_of_image.count("train") == 1:
        raise CapbenchError(f"{dataset.name} has one training image, and training needs two: put more into train")


def default_encoder(dataset: str) -> str:
    """The encoder of a data set unless another one is named.

    >>> default_encoder("scenes"), default_encoder("flickr8k")
    ('scenes', 'timm/tf_efficientnet_lite2')
    """
    return "scenes" if dataset == "scenes" else "timm/tf_efficientnet_lite2"


def describe(data: Path | None = None) -> Iterator[tuple[str, str, str, str, str]]:
    """A row for each data set: name, images, captions, splits, and where it is or how to get it."""
    mine = registered()
    for name in (*NAMES, *mine):
        try:
            dataset = load_dataset(name, data)
        except (CapbenchError, OSError) as error:  # of a folder that one may not enter
            yield name, "-", "-", "-", str(error)
            continue
        place = (
            "drawn on the spot" if name == "scenes" else str(mine[name].path if name in mine else _folder(name, data))
        )
        yield name, f"{len(dataset.images):,}", f"{len(dataset.captions):,}", splits_line(dataset), place


def summary(dataset: CaptionDataset) -> Iterator[str]:
    """What there is to say of a data set of the user's own: counts, words, and what it cannot be used for."""
    images, captions = f"{len(dataset.images):,} images", f"{len(dataset.captions):,} captions"
    yield f"{dataset.name}: {images}, {captions}: {splits_line(dataset)}"
    words = {word for tokens in dataset.tokens for word in tokens}
    silent = sum(not tokens for tokens in dataset.tokens)
    without = f"; {silent:,} captions have none" if silent else ""
    yield f"{len(words):,} different words by the tokeniser {dataset.tokenizer}{without}"
    if dataset.metric_tokenizer:
        yield "METEOR, SPICE and the PTB tokeniser are made for English: BLEU, ROUGE-L and CIDEr-D count these words"
    yield from dataset.notes
    if lacking := [split for split in SPLITS if split not in dataset.splits]:
        yield f"no image in {' and '.join(lacking)}: it can be scored on what it has, and no model trains on it"


def splits_line(dataset: CaptionDataset) -> str:
    """The images of each split: "6,000 train / 1,000 val / 1,000 test"."""
    counts = Counter(dataset.split_of_image)
    return " / ".join(f"{counts[split]:,} {split}" for split in dataset.splits)


def departure(dataset: CaptionDataset) -> str:
    """How a data set differs from the published one of its name: "test: 999, published 1,000".

    Empty if it has the published counts and, if known, the published fingerprint.
    """
    expected = dict(SOURCES[_family(dataset.name)].counts)
    rest = expected.pop("restval", 0)
    if dataset.name != WITHOUT_RESTVAL:
        expected["train"] += rest
    counts = Counter(dataset.split_of_image)
    differing = [split for split in expected if counts[split] != expected[split]]
    if differing:
        return "; ".join(f"{split}: {counts[split]:,}, published {expected[split]:,}" for split in differing)
    if known_fingerprint(dataset.name) in ("", dataset.fingerprint):
        return ""
    return "its names, ids, captions or tokens are not those of the published file"


def is_published(dataset: CaptionDataset) -> bool | None:
    """Whether a data set is the published one of its name; None for the scenes and data sets of other names."""
    return None if _family(dataset.name) not in SOURCES else not departure(dataset)


def known_fingerprint(name: str) -> str:
    """The fingerprint of the scenes as drawn today or of the published data set; empty if unknown."""
    if name == "scenes":
        return SCENES_FINGERPRINT
    return SOURCES[name].fingerprint if name in SOURCES else ""


def _folder(name: str, data: Path | None) -> Path:
    data, family = data or path_from("CAPBENCH_DATA"), _family(name)
    if data is None:
        advice = _advice(name, Path(family))
        raise CapbenchError(f"CAPBENCH_DATA is not set; set it to a folder with {family}/ in it: {advice}")
    return data / family


def _family(name: str) -> str:
    """The name of the data set's folder."""
    return "coco" if name == WITHOUT_RESTVAL else name


def _advice(name: str, folder: Path) -> str:
    source = SOURCES[_family(name)]
    place = f"put {source.split_file} and images/ into {folder} (split file: {SPLIT_FILES}; {source.origin})"
    return f"{place}, or begin with: capbench datasets fetch {_family(name)}"
