"""VSE++: Improving Visual-Semantic Embeddings with Hard Negatives (Faghri, Fleet, Kiros, Fidler; BMVC 2018)."""

from __future__ import annotations

from pathlib import Path

from capbench.runs.paper import Paper
from reproductions.vsepp.claims import CLAIMS
from reproductions.vsepp.experiment import VSEExperiment
from reproductions.vsepp.model import VSE
from reproductions.vsepp.recipe import HEADLINE, presets, protocols

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
)
