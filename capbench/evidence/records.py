"""What a run leaves behind: one JSON file of numbers and provenance, and one file of arrays beside it.

Nothing is overwritten: each record has a name of its own, however many processes write into the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, JsonValue

from capbench.base.errors import CapbenchError
from capbench.base.files import atomic_write
from capbench.base.json_records import RECORD_CONFIG, Count, JsonRecord, Number, load_records, new_stem, read_record
from capbench.base.provenance import Moment
from capbench.evidence import renamed
from capbench.evidence.bundles import LARGEST, pack, unpack

SCHEMA_VERSION = 2
SYSTEMS = "systems"  # the `paper` of records of other systems' outputs; their `preset` is the system's name
SIGNED = "signature: "  # how the note begins that holds the signature of `capbench.scoring.signature`

_BLANKS: dict[str, Any] = {
    "split": "", "protocol": "", "encoder": "", "view": "",
    "validation": {}, "best_epoch": 0, "curve": [], "recipe": {}, "parameters": 0,
    "dataset_fingerprint": "", "features_fingerprint": "", "vocabulary_size": 0,
    "commit": "unknown", "dirty": False, "versions": {}, "device": "", "threads": 0,
    "started": "1970-01-01T00:00:00+00:00", "wall_seconds": 0.0, "command": "",
}  # fmt: skip
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|AUTH|(^|_)(API|ACCESS|PRIVATE)?_?KEY(_|$)", re.I)


class Epoch(BaseModel):
    """One epoch of training."""

    model_config = RECORD_CONFIG

    epoch: Count
    loss: Number | None  # mean over the steps; None where there was nothing to learn
    learning_rate: Number
    seconds: Number  # wall clock
    validation: dict[str, Number]  # metrics after the epoch


class Result(JsonRecord):
    """One run of one preset with one seed.

    Fields with a default are blank in records from before there were such fields.
    """

    blanks = _BLANKS
    schema_version: int = SCHEMA_VERSION
    paper: str
    preset: str
    overrides: dict[str, JsonValue] = Field(default_factory=dict)  # fields of the recipe that are not the preset's
    dataset: str
    split: str
    protocol: str
    encoder: str
    view: str  # the part of an image that the encoder saw
    region_provider: str | None = None  # what made the boxes of regions; None where the model sees no regions
    seed: Count
    metrics: dict[str, Number]  # without those that could not be computed
    validation: dict[str, Number]  # metrics of the snapshot
    best_epoch: Count
    curve: list[Epoch]
    recipe: dict[str, JsonValue]
    parameters: Count
    dataset_fingerprint: str
    features_fingerprint: str
    vocabulary_size: Count
    commit: str
    dirty: bool
    versions: dict[str, str]
    device: str
    threads: Count  # of each process
    processes: Count = Field(default=1, exclude_if=lambda count: count == 1)  # that trained together
    instruction_set: str = ""  # of a CPU
    blas: str = ""  # of a CPU
    precision: str = ""  # of training: "bf16" or "fp32"
    published: bool | None = None  # whether the data are the published split; None where nothing is published
    images: Count | None = None  # of the split
    tokenizer: str = ""  # of caption metrics, where the captions are in other letters than English; else coco-caption's
    started: Moment
    wall_seconds: Number
    energy_joules: Number | None = None
    energy_of: str | None = None  # the device whose energy was counted
    peak_memory_bytes: Count | None = None
    command: str
    notes: list[str] = Field(default_factory=list)
    arrays: str | None = None  # name of the file of arrays
    arrays_sha256: str | None = None

    @classmethod
    def upgraded(cls, document: dict[str, Any]) -> dict[str, Any]:
        """An older document under the present names; schema 1 differs from 2 in nothing else."""
        version = document.get("schema_version", 0)
        if version not in (0, 1):
            return document
        return renamed.record(document) | ({"schema_version": SCHEMA_VERSION} if version == 1 else {})

    @property
    def variant(self) -> str:
        """The preset, and what of its recipe was set by hand."""
        return variant(self.preset, self.overrides)

    @property
    def sees(self) -> str:
        """What the model sees of an image, in one word: the provider of its regions, or the view."""
        return self.region_provider or self.view

    @property
    def scoring(self) -> str:
        """How another system's outputs were scored: their signature, without versions. Empty for a run of ours."""
        if self.paper != SYSTEMS:
            return ""
        fields = signature_of(self.notes).split("|")
        return "|".join(field for field in fields if field.partition(":")[0] not in ("java", "version"))


def signature_of(notes: Sequence[str]) -> str:
    """The signature among the notes of an evaluation or a record; empty where there is none."""
    return next((note.removeprefix(SIGNED) for note in notes if note.startswith(SIGNED)), "")


def variant(preset: str, overrides: Mapping[str, JsonValue]) -> str:
    """A preset and what of its recipe was set by hand, in words.

    >>> variant("vsepp", {}), variant("vsepp", {"margin": 0.1})
    ('vsepp', 'vsepp, margin=0.1')
    """
    return ", ".join([preset, *assignments(overrides)])


def assignments(overrides: Mapping[str, JsonValue]) -> list[str]:
    """Each field that was set by hand as `capbench run --set` reads it.

    >>> assignments({"metric": "bleu4", "training.clip_norm": None})
    ['metric=bleu4', 'training.clip_norm=none']
    """
    words = {None: "none", True: "true", False: "false"}
    return [
        f"{name}={words[value] if value is None or isinstance(value, bool) else value}"
        for name, value in overrides.items()
    ]


def save_result(result: Result, arrays: Mapping[str, np.ndarray], folder: Path) -> Path:
    """Write the arrays, then the record, under a name that no other record has; return the record's path.

    The name is `<paper>-<preset>-<dataset>-<encoder>-s<seed>-<UTC start>-<6 hex>.json`. Integer arrays are
    stored as int32, compressed; the same arrays give the same bytes. Values of environment variables whose
    names speak of a token, key or password are cut out of every string.
    Raises CapbenchError when the folder cannot be written or an array does not fit.
    """
    packed = pack(arrays) if arrays else b""
    names = (result.paper, result.preset, result.dataset, result.encoder)
    words = [re.sub(r"[^A-Za-z0-9_.]+", "_", name)[:40] for name in names]
    with new_stem(folder, "-".join([*words, f"s{result.seed}"]).lstrip("."), result.started) as stem:
        bundle, path = folder / f"{stem}.npz", folder / f"{stem}.json"
        named = {"arrays": bundle.name, "arrays_sha256": hashlib.sha256(packed).hexdigest()} if arrays else {}
        document = _without_secrets(result.model_dump(mode="json") | named)
        try:
            if arrays:
                atomic_write(bundle, packed)
            atomic_write(path, (json.dumps(document, indent=1) + "\n").encode())
        except BaseException:
            bundle.unlink(missing_ok=True)
            raise
    return path


def load_results(folder: Path, paper: str | None = None) -> list[Result]:
    """Every readable record of `folder` (of one paper, if named), by file name; none without such a folder.

    A file that is no record is left out with a warning that names it. A record of another schema is kept:
    fields that it lacks are blank, fields unknown here stay on it, and `marks` says both.
    """
    return [result for result in load_records(Result, folder) if paper in (None, result.paper)]


def add_records(records: Iterable[Path], folder: Path) -> list[Path]:
    """Copy records, each with its arrays, into a folder, as for sharing; return the copies' paths.

    A record that is there already with the same content is left. Raises CapbenchError for a file that is no record,
    for arrays that are missing or changed, and for another file of the same name.
    """
    copies = []
    for path in records:
        result = read_record(Result, path)
        load_arrays(result, path.parent)
        for name in filter(None, (result.arrays, path.name)):  # the record last: it names the arrays
            content = (path.parent / name).read_bytes()
            if (folder / name).exists() and (folder / name).read_bytes() != content:
                raise CapbenchError(f"{folder / name} is there already and differs from {path.parent / name}")
            atomic_write(folder / name, content)
        copies.append(folder / path.name)
    return copies


def load_arrays(result: Result, folder: Path) -> dict[str, np.ndarray]:
    """The arrays saved with a record; empty when it has none. Nothing in the file is ever executed.

    Raises CapbenchError when the file is missing, changed, unreadable, or named outside `folder`.
    """
    if result.arrays is None:
        return {}
    if result.arrays != os.path.basename(result.arrays) or "\\" in result.arrays:
        raise CapbenchError(f"{result.file}: arrays names {result.arrays!r}, which is not a plain file name")
    path = folder / result.arrays
    try:
        content = path.read_bytes() if path.stat().st_size <= LARGEST else b""
        if hashlib.sha256(content).hexdigest() != result.arrays_sha256:
            raise CapbenchError(f"{path} has changed since its record was written; restore it or remove both")
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise CapbenchError(f"cannot read the arrays {path}: {error}") from error
    try:
        return unpack(content)
    except CapbenchError as error:
        raise CapbenchError(f"cannot read the arrays {path}: {error}") from error


def warn_of_damage(error: CapbenchError) -> None:
    """Say that the arrays of a record are left out, unless they are merely not at hand."""
    if not isinstance(error.__cause__, FileNotFoundError):
        warnings.warn(f"left out: {error}", stacklevel=3)


def _without_secrets(value: Any) -> Any:
    secret = {text for name, text in os.environ.items() if _SECRET_NAME.search(name) and len(text) >= 8}

    def clean(item: Any) -> Any:
        if isinstance(item, dict):
            return {clean(key): clean(entry) for key, entry in item.items()}
        if isinstance(item, list):
            return [clean(entry) for entry in item]
        if isinstance(item, str):
            for text in secret:
                item = item.replace(text, "[removed]")
        return item

    return clean(value)
