"""Finished runs, loaded: a trained model for pictures of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from capbench.base.errors import CapbenchError
from capbench.data.images import decode
from capbench.data.vocabulary import Vocabulary
from capbench.runs.job import DESCRIPTION, Job, description
from capbench.runs.paper import paper
from capbench.training import checkpoint
from capbench.vision.encoders import Encoder
from capbench.vision.features import encode, stacked
from capbench.vision.regions import boxes_of_picture
from capbench.vision.weights import fit

PICTURES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp"}
BATCH = 32


@dataclass(frozen=True)
class Trained:
    """A finished run with its trained model."""

    job: Job
    recipe: Any  # of the paper's subclass of Recipe
    vocabulary: Vocabulary
    model: nn.Module  # in evaluation mode, with the weights of the best snapshot
    encoder_weights: Mapping[str, Tensor]  # of a fine-tuned encoder; empty for a fixed one

    @cached_property
    def encoder(self) -> Encoder:
        encoder = Encoder(self.job.encoder, self.recipe.output)
        if self.encoder_weights:
            encoder.load_state_dict(self.encoder_weights)
        return encoder

    @torch.no_grad()
    def features(self, pictures: Sequence[Path]) -> Float[Tensor, "picture ... dim"]:
        """The features of picture files, computed as those of test images. Raises CapbenchError naming a bad file."""
        batches = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
        return torch.cat([self._encoded([decode(path) for path in batch]) for batch in batches])

    def boxes(self, pictures: Sequence[Path]) -> Float[Tensor, "picture region 4"]:
        """The boxes of the model's regions: x0, y0, x1, y1 as fractions of a picture's width and height.

        Raises CapbenchError naming a bad file, and for a model that sees no regions or regions that belong to a data
        set (see `boxes_of_picture`).
        """
        if self.recipe.output != "regions":
            raise CapbenchError(f"{self.job} sees no regions of a picture but its {self.recipe.output}")
        return self._boxes_of(decode(path) for path in pictures)

    def _encoded(self, pictures: Sequence[UInt8[np.ndarray, "height width 3"]]) -> Float[Tensor, "picture ... dim"]:
        boxes = self._boxes_of(pictures) if self.recipe.output == "regions" else None
        return encode(self.encoder, stacked(pictures, self.encoder.input_size, self.recipe.stored_view), boxes)

    def _boxes_of(self, pictures: Iterable[np.ndarray]) -> Float[Tensor, "picture region 4"]:
        provider = self.recipe.stored_view
        return torch.from_numpy(np.stack([boxes_of_picture(pixels, provider) for pixels in pictures]))


def load_run(folder: Path) -> Trained:
    """A finished run from its folder. Raises CapbenchError when it is not one, or has another recipe or vocabulary."""
    described = description(folder)
    job = described.job
    owner = paper(job.paper)
    recipe = owner.recipe(job.preset, job.dataset)
    changed = checkpoint.differences(asdict(recipe), described.identity["recipe"])
    if changed:
        raise CapbenchError(f"{folder} was trained with another recipe; train it again:\n  " + "\n  ".join(changed))
    vocabulary = Vocabulary.load(folder / "vocabulary.json")
    if vocabulary.fingerprint != described.identity.get("vocabulary"):
        raise CapbenchError(f"{folder / 'vocabulary.json'} is not the vocabulary of this run; train it again")
    model = owner.model(recipe, vocabulary, described.feature_dim)
    tensors, _ = checkpoint.load(folder / "best.safetensors")
    prefix = "encoder."
    encoder_weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    own_weights = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
    fit(model, own_weights, folder / "best.safetensors")
    return Trained(job, recipe, vocabulary, model.eval(), encoder_weights)


def finished_runs(runs: Path) -> list[Path]:
    """The folders of finished runs, newest first."""
    folders = (path.parent for path in runs.glob(f"*/*/{DESCRIPTION}"))
    return sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)


def find_run(run: Path | None, runs: Path, kind: type, what: str, advice: str) -> Trained:
    """The finished run in `run`, or else the newest one under `runs`, whose model is of a kind (a runtime protocol).

    Raises CapbenchError that names the kind in words, `what`, and how to make one, `advice`.
    """
    if run is not None:
        trained = load_run(run)
        if not isinstance(trained.model, kind):
            raise CapbenchError(f"{run} ({trained.job}) is no {what}; choose another run")
        return trained
    refused = []
    for folder in finished_runs(runs):
        try:
            trained = load_run(folder)
        except CapbenchError as error:
            refused.append(f"\n  {error}")
            continue
        if isinstance(trained.model, kind):
            return trained
    raise CapbenchError(f"no trained {what} under {runs}; make one with: {advice}{''.join(refused)}")


def pictures_in(folder: Path) -> list[Path]:
    """The picture files in a folder and below, sorted. Raises CapbenchError when there is none."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not paths:
        raise CapbenchError(f"no image in {folder}; looked for {', '.join(sorted(PICTURES))}")
    return paths
