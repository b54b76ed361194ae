"""What every benchmark needs: captions to work on, and the machine beside each number."""

from __future__ import annotations

import os

import pytest
import torch

from capbench.data.captions import CaptionDataset
from capbench.data.datasets import load_dataset
from capbench.records import provenance
from capbench.training import cpu_has_bf16


@pytest.fixture(scope="session")
def dataset() -> CaptionDataset:
    """Flickr8K where CAPBENCH_DATA holds it, else the embedded scenes."""
    try:
        return load_dataset("flickr8k")
    except Exception:
        return load_dataset("scenes")


@pytest.fixture(autouse=True)
def machine(request: pytest.FixtureRequest) -> None:
    """Device, threads and versions go into each result."""
    if "benchmark" in request.fixturenames:
        origin = provenance("cuda" if torch.cuda.is_available() else "cpu")
        info = {name: origin[name] for name in ("device", "threads", "versions")}
        info |= {"bf16": cpu_has_bf16(), "load": os.getloadavg()[0]}
        request.getfixturevalue("benchmark").extra_info.update(info)
