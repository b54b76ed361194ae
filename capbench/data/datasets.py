"""The data sets by name: the embedded scenes, and those read from the user's files."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from capbench.base.cache import path_from
from capbench.base.errors import CapbenchError
from capbench.data.captions import CaptionDataset
from capbench.data.karpathy_split import Restval, read_karpathy_split
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
NAMES = ("scenes", *SOURCES, WITHOUT_RESTVAL)
NOT_PUBLISHED = "not the published split"  # how a note on such data begins


def load_dataset(name: str, data: Path | None = None) -> CaptionDataset:
    """A data set by name: "scenes", or one with files under `data` (default CAPBENCH_DATA).

    The files are `<data>/<name>/dataset_<name>.json` and the folder `<data>/<name>/images`. "coco" trains on COCO's
    restval images too, "coco-norestval" leaves them out. A `departure` from the published split is warned about and
    noted in `notes`. Raises CapbenchError that names missing files and where to put them.

    >>> load_dataset("scenes").splits
    ('train', 'val', 'test')
    """
    if name == "scenes":
        return scenes()
    if name not in NAMES:
        raise CapbenchError(f"no data set {name!r}; choose one of {', '.join(NAMES)}")
    folder = _folder(name, data)
    split_file = folder / SOURCES[_family(name)].split_file
    if not split_file.is_file():
        raise CapbenchError(f"{split_file} is missing; {_advice(name, folder)}")
    restval: Restval = "drop" if name == WITHOUT_RESTVAL else "train"
    dataset = read_karpathy_split(split_file, folder / "images", name, restval)
    differing = departure(dataset)
    if differing:
        fault = f"{NOT_PUBLISHED} ({differing})"
        warnings.warn(f"{name} is {fault}: its numbers cannot be compared with published ones", stacklevel=2)
        dataset = replace(dataset, notes=(*dataset.notes, fault))
    try:
        dataset.images.check()
    except CapbenchError as error:
        raise CapbenchError(f"{error}; {_advice(name, folder)}") from error
    return dataset


def describe(data: Path | None = None) -> Iterator[tuple[str, str, str, str, str]]:
    """A row for each data set: name, images, captions, splits, and where it is or how to get it."""
    for name in NAMES:
        try:
            dataset = load_dataset(name, data)
        except CapbenchError as error:
            yield name, "-", "-", "-", str(error)
            continue
        counts = Counter(dataset.split_of_image)
        splits = " / ".join(f"{counts[split]:,} {split}" for split in dataset.splits)
        place = "drawn on the spot" if name == "scenes" else str(_folder(name, data))
        yield name, f"{len(dataset.images):,}", f"{len(dataset.captions):,}", splits, place


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
    return f"put {source.split_file} and images/ into {folder} (split file: {SPLIT_FILES}; {source.origin})"
