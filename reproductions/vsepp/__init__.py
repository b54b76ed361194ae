"""VSE++: Improving Visual-Semantic Embeddings with Hard Negatives (Faghri, Fleet, Kiros, Fidler; BMVC 2018)."""

from __future__ import annotations

from pathlib import Path

from capbench.runs.paper import Paper

from .claims import CLAIMS
from .experiment import VSEExperiment
from .model import VSE
from .recipe import HEADLINE, presets, protocols
from .released import read_released

PAPER = Paper(
    name="vsepp",
    title="VSE++: Improving Visual-Semantic Embeddings with Hard Negatives",
    citation="Faghri, Fleet, Kiros, Fidler. BMVC 2018, arXiv 1707.05612",
    folder=Path(__file__).parent,
    presets=presets,
    headline=HEADLINE,
    metric="rsum",
    model=lambda recipe, vocabulary, feature_dim: VSE(recipe, len(vocabulary), feature_dim),
    experiment=VSEExperiment,
    claims=CLAIMS,
    protocols=protocols,
    released=read_released,
)
