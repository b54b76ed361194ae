"""The record of a probe: how well an encoder's features tell the words of captions, with its provenance."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from pydantic import BaseModel, NonNegativeInt, PositiveFloat, PositiveInt

from capbench.base.files import atomic_write
from capbench.base.json_records import RECORD_CONFIG, JsonRecord, as_json, load_records, new_stem
from capbench.base.provenance import Moment
from capbench.metrics.probe import standard_error

SCHEMA_VERSION = 1


class ProbeEntry(BaseModel):
    """A probe that was fitted on some of the training images."""

    model_config = RECORD_CONFIG

    images: PositiveInt  # of the training split that it was fitted on
    penalty: PositiveFloat  # on the squared weights, chosen on the validation images
    area: float  # the mean of `areas`
    areas: tuple[float, ...]  # under the ROC curve on the test images, one a word
    influence: tuple[float, ...]  # of each test image on the mean area

    @property
    def standard_error(self) -> float:
        """Of the area, over draws of test images."""
        return standard_error(np.array(self.influence))

    def ahead_of(self, other: ProbeEntry) -> tuple[float, float]:
        """How far the area lies above another encoder's, on the same words and images, and its standard error."""
        return self.area - other.area, standard_error(np.subtract(self.influence, other.influence))


class ProbeRecord(JsonRecord):
    """One encoder on one data set."""

    kind = "probe record"
    schema_version: int = SCHEMA_VERSION
    dataset: str
    dataset_fingerprint: str
    encoder: str
    encoder_fingerprint: str  # of its name, layer and weights
    features_fingerprint: str
    view: str  # the part of an image that the encoder saw
    dim: PositiveInt  # of the features
    words: tuple[str, ...]  # whose presence is told, the most frequent first
    seed: NonNegativeInt  # of the order in which training images are taken
    entries: tuple[ProbeEntry, ...]  # by number of training images
    commit: str
    dirty: bool
    versions: dict[str, str]
    device: str
    threads: int
    started: Moment
    command: str


def save_probe(record: ProbeRecord, folder: Path) -> Path:
    """Write a record as `<dataset>-<encoder>-<UTC start>-<6 hex>.json`, a name that no other has; return its path.

    Raises CapbenchError when the folder cannot be written.
    """
    words = re.sub(r"[^A-Za-z0-9_]+", "-", f"{record.dataset}-{record.encoder}").strip("-")
    with new_stem(folder, words, record.started) as stem:
        atomic_write(folder / f"{stem}.json", as_json(record))
    return folder / f"{stem}.json"


def load_probes(folder: Path) -> list[ProbeRecord]:
    """Every readable probe record in `folder`; see `load_records` for damaged files and other schemas."""
    return load_records(ProbeRecord, folder)
