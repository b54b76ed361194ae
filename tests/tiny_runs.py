"""Finished runs of tiny models on a few scenes, for what works with trained models."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from pydantic import JsonValue

from capbench.data.captions import CaptionDataset
from capbench.data.scenes import scenes
from capbench.metrics import captioning, jars
from capbench.runs import harness, materials
from capbench.runs.harness import Places
from capbench.runs.job import Job
from capbench.runs.materials import Materials

SMALL: dict[str, JsonValue] = {"embedding_dim": 16, "hidden_dim": 16, "training.epochs": 2, "training.batch_size": 32}
ATTENTION: dict[str, JsonValue] = {"attention_dim": 16, "choose_beam": False, "beam_size": 1}  # a beam prefers silence
JOBS = (
    Job("show_attend_tell", "soft-ours", "scenes", "scenes", 0, SMALL | ATTENTION),
    Job("show_and_tell", "nic-ours", "scenes", "scenes", 0, SMALL | {"choose_beam": False}),
    Job("vsepp", "vsepp-ours", "scenes", "scenes", 0, {k: v for k, v in SMALL.items() if k != "hidden_dim"}),
    Job("karpathy", "brnn-ours", "scenes", "scenes", 0, SMALL),
)
FEW = {"train": 60, "val": 15, "test": 20}


REGIONS = Job("karpathy", "rnn-regions-ours", "scenes", "scenes", 0, {"training.epochs": 1, "hidden_dim": 16})


def few_scenes() -> CaptionDataset:
    """The scenes of these runs."""
    return scenes(seed=5, **FEW)


def tiny_runs(folder: Path, *, with_regions: bool = False) -> Path:
    """Train a captioner with attention, one without, an embedding and an alignment model; returns the runs' folder.

    `with_regions` adds a captioner of regions.
    """
    few = few_scenes()
    with pytest.MonkeyPatch.context() as patch:
        for module in (jars, captioning):  # Java takes longer than the rest
            patch.setattr(module, "find_java", lambda: None)
        patch.setattr(materials, "load_dataset", lambda name: few)
        patch.setenv("CAPBENCH_CACHE", str(folder / "cache"))
        for job in (*JOBS, *[REGIONS] * with_regions):
            harness.run(job, Places(folder / "runs"), Materials(), lambda *_: None)
    return folder / "runs"


def album(folder: Path, pictures: int = 6) -> Path:
    """A folder with the pictures of a few scenes."""
    folder.mkdir(parents=True)
    few = scenes(seed=6, train=pictures, val=0, test=0)
    for number in range(pictures):
        Image.fromarray(few.images[number]).resize((256, 256)).save(folder / f"{number}.png")
    return folder
