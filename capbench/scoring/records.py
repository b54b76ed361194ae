"""Records of other systems' outputs, and records scored again with the metrics of today."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from capbench.base.errors import CapbenchError
from capbench.base.files import sha256
from capbench.base.provenance import provenance
from capbench.data.captions import CaptionDataset, Split, protocol_line
from capbench.data.datasets import is_published
from capbench.evidence.records import SYSTEMS, Result, load_arrays, save_result, signature_of
from capbench.metrics.retrieval import Ranks, metrics_of_ranks, scored
from capbench.scoring.ranking import DIRECTIONS
from capbench.scoring.score import score_captions
from capbench.scoring.signature import noted, of_captions, renewed
from capbench.scoring.words import captions_of
from capbench.training.experiment import Evaluation

LONGEST_NAME = 100  # of a system, in characters
# How notes begin that scoring makes anew.
_REPLACED = ("tokeniser:", "candidates:", "cider:", "meteor:", "spice:", "novelty:")


@dataclass(frozen=True)
class System:
    """A system whose outputs are recorded."""

    name: str
    kind: str  # of its outputs: captions, embeddings, similarity, ranking
    files: tuple[Path, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.name.strip() or len(self.name) > LONGEST_NAME or not self.name.isprintable():
            raise CapbenchError(f"--system {self.name!r}: give a name of 1 to {LONGEST_NAME} printable characters")


def record_system(
    system: System, evaluation: Evaluation, split: Split, protocol: str, options: dict[str, str], folder: Path,
    started: datetime,
) -> Path:  # fmt: skip
    """Record what a system's outputs scored; the path of the record. Raises CapbenchError as `save_result`."""
    return save_result(system_result(system, evaluation, split, protocol, options, started), evaluation.arrays, folder)


def system_result(
    system: System, evaluation: Evaluation, split: Split, protocol: str, options: Mapping[str, str], started: datetime
) -> Result:
    """The record of what a system's outputs scored, not yet written. Files are named without their folders.

    `options` are those of the command besides data set, split and protocol.
    """
    words = ["capbench", "score", system.kind, *(path.name for path in system.files)]
    options = {
        "dataset": split.dataset.place or split.dataset.name,
        "split": split.name,
        "protocol": protocol,
        **options,
    }
    command = [*words, *(word for name, value in options.items() for word in (f"--{name}", value))]
    hashes = [f"file: {path.name}, sha256 {sha256(path)}" for path in system.files]
    return Result(
        paper=SYSTEMS,
        preset=system.name,
        dataset=split.dataset.name,
        protocol=protocol,
        encoder=system.kind,
        view="",
        seed=system.seed,
        metrics=dict(evaluation.metrics),
        validation={},
        best_epoch=0,
        curve=[],
        recipe={},
        parameters=0,
        features_fingerprint="",
        vocabulary_size=0,
        started=started.isoformat(),
        wall_seconds=(datetime.now(UTC) - started).total_seconds(),
        command=shlex.join(command),
        notes=[protocol_line(split), *evaluation.notes, *hashes],
        **split_fields(split),
        **provenance(),
    )


def split_fields(split: Split) -> dict[str, Any]:
    """What a record says of the split that was scored."""
    return {
        "split": split.name,
        "dataset_fingerprint": split.dataset.fingerprint,
        "published": is_published(split.dataset),
        "images": len(split.image_index),
        "tokenizer": split.dataset.metric_tokenizer,
    }


def rescored(record: Result, folder: Path, dataset: CaptionDataset) -> Evaluation:
    """The captions and ranks of a record in `folder`, scored with the metrics of today.

    Raises CapbenchError for another data set than the record's, a vocabulary of another size, and for a record that
    keeps neither captions nor ranks.
    """
    if dataset.fingerprint != record.dataset_fingerprint:
        theirs = record.dataset_fingerprint[:12] or "unknown"
        raise CapbenchError(
            f"{record.file} is of the data set {record.dataset} {theirs}, and this one is {dataset.fingerprint[:12]}; "
            "give the data that it was run on"
        )
    arrays, split = load_arrays(record, folder), scored(dataset.split(record.split), record.protocol)
    captions = captions_of(record, arrays, dataset)
    metrics: dict[str, float] = {}
    made: dict[str, np.ndarray] = {}
    signature = signature_of(record.notes)
    notes = [noted(renewed(signature))] if signature else []
    if captions is not None:
        evaluation = score_captions(captions, split)
        metrics, made = {**evaluation.metrics}, {**evaluation.arrays}
        rule = _field(signature, "rule") or "coco-caption"
        notes = [noted(of_captions(split, record.protocol, rule, evaluation.notes)), *evaluation.notes]
    if any(direction in arrays for direction in DIRECTIONS):
        counted = _counted(arrays, record.protocol)
        metrics |= {name: value for name, value in counted.items() if name in record.metrics or record.paper != SYSTEMS}
    if not metrics:
        raise CapbenchError(f"{record.file} keeps neither captions nor ranks; there is nothing to score again")
    return Evaluation(metrics, {**arrays, **made}, tuple(notes))


def record_again(record: Result, evaluation: Evaluation, folder: Path) -> Path:
    """Write a new record with the metrics of today; what they do not replace is the old record's, as its notes say.

    Raises CapbenchError as `save_result`.
    """
    notes = [note for note in record.notes if not signature_of([note]) and not note.startswith(_REPLACED)]
    origin = f"rescored: the captions and ranks of {record.file}, made at commit {record.commit[:10]}"
    made = provenance()
    now = {name: made[name] for name in ("commit", "dirty", "versions")} | {"started": datetime.now(UTC).isoformat()}
    metrics = {**record.metrics, **evaluation.metrics}
    if any(note.startswith("novelty:") for note in evaluation.notes):
        metrics.pop("novelty", None)  # of older records of data without training captions, where it says nothing
    changed = {"metrics": metrics, "notes": [*notes, *evaluation.notes, origin], **now}
    fields = record.model_dump(exclude={"arrays", "arrays_sha256"}) | changed
    return save_result(Result(**fields), evaluation.arrays, folder)


def _counted(arrays: Mapping[str, np.ndarray], protocol: str) -> dict[str, float]:
    """The metrics of the ranks of a record; those of a direction that it lacks mean nothing."""
    image_of_caption = torch.from_numpy(arrays["image_of_caption"]).long()
    images = int(image_of_caption.max()) + 1 if len(image_of_caption) else 0
    counts = dict(zip(DIRECTIONS, (images, len(image_of_caption)), strict=True))
    lacking = {name: np.zeros(count, np.int64) for name, count in counts.items()}
    ranks = Ranks(*(torch.from_numpy(arrays.get(name, lacking[name])).long() for name in DIRECTIONS))
    return metrics_of_ranks(ranks, image_of_caption, protocol)


def _field(signature: str, name: str) -> str:
    """A field of a signature; empty where it has none of that name."""
    fields = dict(field.partition(":")[::2] for field in signature.split("|"))
    return fields.get(name, "")
