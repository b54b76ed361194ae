"""Whether a data set on the disk is what its split file says, and what was published."""

from __future__ import annotations

import os
import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from capbench.base.errors import CapbenchError
from capbench.base.progress import Report, reporter
from capbench.data.captions import CaptionDataset
from capbench.data.datasets import WITHOUT_RESTVAL, departure, is_published, known_fingerprint, load_captions
from capbench.data.folders import read_own
from capbench.data.images import ImageFolder, decode
from capbench.data.picture_folder import SUFFIXES
from capbench.data.registered import find


@dataclass(frozen=True)
class Check:
    """What was found of a data set."""

    dataset: CaptionDataset
    missing: tuple[str, ...]  # images that are no files
    undecodable: tuple[str, ...]  # what is wrong with an image, each with its path
    decoded: int  # images that were looked into
    extra: tuple[str, ...]  # picture files that the split file does not name: no fault
    differing: str  # how it is not the published data set; empty also where none is known

    @property
    def whole(self) -> bool:
        return not (self.missing or self.undecodable or self.differing)

    @property
    def fingerprint(self) -> str:
        """The data set's fingerprint, and what it was compared with."""
        known = known_fingerprint(self.dataset.name)
        return f"{self.dataset.fingerprint}, " + (
            "as published" if known == self.dataset.fingerprint else "to compare with that of another machine"
        )


def check(name: str, sample: int | None = None, progress: Report | bool | None = None) -> Check:
    """Look at a data set by name, or at one of the user's own: names, counts, fingerprint, and that images decode.

    All images are decoded, or `sample` of them, the same ones each time. Raises CapbenchError for a missing or
    malformed split file, and for the scenes, which have no files.
    """
    if name == "scenes":
        raise CapbenchError("scenes are drawn on the spot: there are no files to check")
    own = find(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a departure is among the findings
        dataset = read_own(own, pictures=False) if own else load_captions("coco" if name == WITHOUT_RESTVAL else name)
    assert isinstance(dataset.images, ImageFolder)
    root, names = dataset.images.root, dataset.images.names
    missing = dataset.images.missing()
    there = sorted(set(names) - set(missing))
    chosen = there if sample is None else sorted(random.Random(0).sample(there, min(sample, len(there))))
    faults: list[str] = []
    with reporter(progress, "decoding") as report, ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, fault in enumerate(pool.map(_fault, (root / image for image in chosen)), 1):
            faults += [fault] if fault else []
            report(done, len(chosen))
    differing = departure(dataset) if is_published(dataset) is False else ""
    return Check(dataset, tuple(missing), tuple(faults), len(chosen), _extra(root, set(names)), differing)


def _fault(path: Path) -> str:
    try:
        decode(path)
    except CapbenchError as error:
        return str(error)
    return ""


def _extra(root: Path, names: set[str]) -> tuple[str, ...]:
    files = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    return tuple(sorted(set(files) - names))
