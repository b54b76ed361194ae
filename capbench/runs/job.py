"""What one run is: its job, and the identity and description that its folder keeps."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from capbench.base.errors import CapbenchError
from capbench.base.files import atomic_write
from capbench.evidence import renamed
from capbench.evidence.records import SCHEMA_VERSION, assignments, variant
from capbench.training.experiment import Inputs, Recipe
from capbench.vision.weights import hash_tensors

DESCRIPTION, VOCABULARY = "run.json", "vocabulary.json"


@dataclass(frozen=True)
class Job:
    """One run: a preset of a paper on a data set with an encoder and a seed.

    >>> Job("vsepp", "vse0", "scenes", "scenes", 0).command
    'capbench run vsepp --preset vse0 --dataset scenes --encoder scenes --seed 0'
    """

    paper: str
    preset: str
    dataset: str
    encoder: str
    seed: int
    overrides: Mapping[str, JsonValue] = field(default_factory=dict, hash=False)  # of the recipe, by dotted name

    def __str__(self) -> str:
        return f"{self.paper} {self.variant} on {self.dataset}, {self.encoder}, seed {self.seed}"

    @property
    def variant(self) -> str:
        """The preset, and what of its recipe was set by hand."""
        return variant(self.preset, self.overrides)

    @property
    def name(self) -> str:
        """The name of its folder.

        Another job can have the same one, as with the encoders `file/a-b` and `file/a_b`: the second run is refused.
        """
        name = f"{self.preset}-{self.dataset}-{_word(self.encoder)}-s{self.seed}"
        if not self.overrides:
            return name
        digest = hashlib.sha256(json.dumps(self.overrides, sort_keys=True).encode()).hexdigest()
        return f"{name}-{_word('_'.join(assignments(self.overrides)))[:80]}-{digest[:8]}"

    @property
    def command(self) -> str:
        """The command that makes this run."""
        return shlex.join(["capbench", *self.words])

    @property
    def words(self) -> list[str]:
        """Those of the command, after `capbench`."""
        words = ["run", self.paper.replace("_", "-"), "--preset", self.preset, "--dataset", self.dataset]
        words += ["--encoder", self.encoder, "--seed", str(self.seed)]
        return words + [word for each in assignments(self.overrides) for word in ("--set", each)]

    def command_of(self, processes: int) -> str:
        """The command that makes this run in several processes.

        >>> Job("vsepp", "vse0", "scenes", "scenes", 0).command_of(2)[:62]
        'torchrun --nproc-per-node 2 -m capbench.cli run vsepp --preset'
        """
        several = f"torchrun --nproc-per-node {processes} -m capbench.cli"
        return self.command if processes == 1 else self.command.replace("capbench", several, 1)


def _word(text: str) -> str:
    """Text as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "_", text)


def identity(job: Job, recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
    """All that decides what a run computes, as JSON values: equal for two runs that should be equal."""
    return {
        "job": asdict(job),
        "recipe": asdict(recipe),
        "dataset": inputs.dataset.fingerprint,
        "features": inputs.features.fingerprint,
        "vocabulary": inputs.vocabulary.fingerprint,
        "init": [hash_tensors(dict(snapshot)) for snapshot in inputs.init],
    }


@dataclass(frozen=True)
class Description:
    """What the folder of a finished run says of it."""

    identity: Mapping[str, Any]
    feature_dim: int
    records: tuple[str, ...]  # names of the files that it recorded
    finished: str  # UTC, ISO 8601

    @property
    def job(self) -> Job:
        return Job(**self.identity["job"])


def describe(folder: Path, identity: Mapping[str, Any], feature_dim: int, records: Sequence[str]) -> Description:
    """Write the description of a run that has just finished into its folder.

    Raises CapbenchError when it cannot be written.
    """
    described = Description(identity, feature_dim, tuple(records), datetime.now(UTC).isoformat(timespec="seconds"))
    document = {"schema_version": SCHEMA_VERSION, **asdict(described)}
    atomic_write(folder / DESCRIPTION, json.dumps(document, indent=1).encode())
    return described


def description(folder: Path) -> Description:
    """Read what `describe` wrote, or what a version with schema 1 did. Raises CapbenchError when it is unreadable."""
    try:
        document = json.loads((folder / DESCRIPTION).read_text())
        if not isinstance(document, dict):
            raise ValueError("it holds no JSON object")
        if document.get("schema_version", SCHEMA_VERSION) > SCHEMA_VERSION:
            raise CapbenchError(f"{folder / DESCRIPTION} was written by a newer version of capbench")
        if "schema_version" not in document:
            document = _of_schema_1(document)
        records, finished = tuple(document["records"]), document["finished"]
        described = Description(document["identity"], document["feature_dim"], records, finished)
        Job(**described.identity["job"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CapbenchError(f"{folder} is not a finished run (no readable {DESCRIPTION}): {error}") from error
    return described


def _of_schema_1(document: Mapping[str, Any]) -> dict[str, Any]:
    job = document["job"]
    named = {**job, "preset": renamed.preset(job["paper"], job["preset"])}
    recipe = renamed.recipe(job["paper"], document["recipe"])
    identity = {"job": named, "recipe": recipe, **document.get("made_from", {}), "vocabulary": document["vocabulary"]}
    return {"identity": identity, "feature_dim": document["feature_dim"], "records": [], "finished": ""}
