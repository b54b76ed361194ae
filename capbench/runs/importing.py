"""A released checkpoint becomes a finished run, whose model the tools find, and if wanted is scored and recorded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from capbench.base.errors import CapbenchError
from capbench.base.files import sha256
from capbench.base.plugins import versions
from capbench.base.provenance import provenance
from capbench.data.captions import CaptionDataset, protocol_line
from capbench.evidence.records import Result, save_result
from capbench.metrics.retrieval import scored
from capbench.runs.harness import Places, claimed
from capbench.runs.job import VOCABULARY, Job, describe, description
from capbench.runs.materials import Materials, default_device, encoder_on_device
from capbench.runs.paper import Paper, papers
from capbench.runs.released import PREFIX, Released
from capbench.scoring.records import split_fields
from capbench.training import checkpoint
from capbench.training.experiment import Inputs
from capbench.vision.encoders import Encoder
from capbench.vision.extraction import View
from capbench.vision.features import features
from capbench.vision.weights import load_state_dict


@dataclass(frozen=True)
class Request:
    """What is imported, and where the file leaves a choice, what is chosen."""

    checkpoint: Path
    vocabulary: Path
    name: str | None = None  # of the preset, after "released-"; None: the kind of model
    dataset: str | None = None  # that it is scored on; None: the one that it was trained on
    encoder: str | None = None  # that makes its features; None: the one that it was trained with
    view: View | None = None  # of the images; None: as the file says
    record: bool = False  # whether it is scored on the test split
    command: str = ""  # for the record


@dataclass(frozen=True)
class Imported:
    """A run made from a released checkpoint."""

    folder: Path
    records: tuple[Path, ...]


def import_run(paper: Paper, request: Request, places: Places, materials: Materials) -> Imported:
    """Make a finished run from a released checkpoint. Nothing is written if anything is refused.

    Raises CapbenchError for a paper without a reader, for files that the reader refuses, for an encoder of another
    dimension, and for a run of the same name that holds other weights.
    """
    if paper.released is None:
        known = ", ".join(name for name, each in papers().items() if each.released)
        raise CapbenchError(f"capbench reads no released checkpoint of {paper.name}; it reads those of {known}")
    released = paper.released(request.checkpoint, request.vocabulary)
    if request.view:
        released = replace(released, recipe=replace(released.recipe, view=request.view))
    job = _job(paper, request, released)
    model = paper.model(released.recipe, released.vocabulary, released.feature_dim).eval()
    load_state_dict(model, dict(released.weights), request.checkpoint)
    identity = {
        "job": asdict(job),
        "recipe": asdict(released.recipe),
        "released": sha256(request.checkpoint),
        "vocabulary": released.vocabulary.fingerprint,
    }
    folder = places.folder(job)
    with claimed(job, places):
        _check_free(folder, identity)
        encoder = _encoder(job, released) if request.record or released.encoder_weights else None
        made = _scored(paper, job, released, request, model, encoder, materials) if encoder and request.record else []
        records = tuple(save_result(result, arrays, places.records) for result, arrays in made)
        own = {f"encoder.{name}": value for name, value in encoder.state_dict().items()} if encoder else {}
        kept = model.state_dict() | (own if released.encoder_weights else {})
        checkpoint.save(folder / checkpoint.SNAPSHOT, kept, {})
        released.vocabulary.save(folder / VOCABULARY)
        describe(folder, identity, released.feature_dim, [path.name for path in records])
    return Imported(folder, records)


def _job(paper: Paper, request: Request, released: Released) -> Job:
    name = request.name or released.preset
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
        raise CapbenchError(f"--name {name!r}: take letters, digits, and _ . + - alone")
    dataset, encoder = request.dataset or released.dataset, request.encoder or released.encoder
    return Job(paper.name, f"{PREFIX}{name}", dataset, encoder, 0)


def _check_free(folder: Path, identity: Mapping[str, Any]) -> None:
    try:
        there = description(folder).identity
    except CapbenchError:
        return
    if there.get("released") != identity["released"]:
        raise CapbenchError(f"{folder} holds the run of another checkpoint; give this one another --name")


def _encoder(job: Job, released: Released) -> Encoder:
    """The encoder of the job, with the weights of the checkpoint where it has some."""
    if released.encoder_weights and job.encoder != released.encoder:
        raise CapbenchError(f"the checkpoint holds a {released.encoder} of its own; leave out --encoder {job.encoder}")
    encoder = encoder_on_device(job.encoder, released.recipe.output, released.encoder_weights or "auto")
    if encoder.dim != released.feature_dim:
        raise CapbenchError(
            f"the model takes vectors of {released.feature_dim}, and {job.encoder} gives {encoder.dim}; "
            "name the encoder that it was trained with: --encoder"
        )
    return encoder


def _scored(
    paper: Paper,
    job: Job,
    released: Released,
    request: Request,
    model: nn.Module,
    encoder: Encoder,
    materials: Materials,
) -> list[tuple[Result, Mapping[str, Any]]]:
    """A record for each protocol of the data set, with its arrays."""
    recipe, device = released.recipe, default_device()
    dataset = materials.dataset(job.dataset)
    stored = features(dataset, encoder, recipe.view, recipe.region_provider, store=materials.store, progress=True)
    inputs = Inputs(_as_read(dataset, released), encoder, stored, released.vocabulary)
    made_by = provenance(device) | {"started": datetime.now(UTC).isoformat()}
    made_by["versions"] |= versions(paper.entry) | encoder.packages
    experiment = paper.experiment(recipe, inputs, model, job.seed, device)
    weights = f"{request.checkpoint.name}, SHA-256 {sha256(request.checkpoint)[:16]}"
    results = []
    for protocol in paper.protocols(job.dataset, recipe):
        split = scored(dataset.split("test"), protocol)
        with torch.no_grad():
            evaluation = experiment.test(protocol)
        result = Result(
            **asdict(job),
            **made_by,
            **split_fields(split),
            protocol=protocol,
            view=recipe.view,
            metrics=dict(evaluation.metrics),
            validation={},
            best_epoch=0,
            curve=[],
            recipe=asdict(recipe),
            parameters=sum(value.numel() for value in model.parameters()),
            features_fingerprint=stored.fingerprint,
            vocabulary_size=len(released.vocabulary),
            wall_seconds=0.0,
            command=request.command,
            notes=[
                f"released weights, not trained by capbench: {weights}",
                *released.notes,
                protocol_line(split),
                *evaluation.notes,
            ],
        )
        results.append((result, evaluation.arrays))
    return results


def _as_read(dataset: CaptionDataset, released: Released) -> CaptionDataset:
    """The data set with the tokens that the released code makes of its captions."""
    if released.tokens is None:
        return dataset
    return replace(dataset, tokens=tuple(tuple(released.tokens(text)) for text in dataset.captions), phrases=None)
