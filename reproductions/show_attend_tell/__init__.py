"""Show, Attend and Tell (Xu, Ba, Kiros, Cho, Courville, Salakhutdinov, Zemel, Bengio; ICML 2015)."""

from __future__ import annotations

from pathlib import Path

from capbench.runs.paper import Paper

from .claims import CLAIMS
from .experiment import AttentionExperiment
from .model import ShowAttendTell
from .recipe import HEADLINE, presets

PAPER = Paper(
    name="show_attend_tell",
    title="Show, Attend and Tell: Neural Image Caption Generation with Visual Attention",
    citation="Xu, Ba, Kiros, Cho, Courville, Salakhutdinov, Zemel, Bengio. ICML 2015, arXiv 1502.03044",
    folder=Path(__file__).parent,
    presets=presets,
    headline=HEADLINE,
    metric="bleu4",
    model=lambda recipe, vocabulary, annotation_dim: ShowAttendTell(recipe, len(vocabulary), annotation_dim),
    experiment=AttentionExperiment,
    claims=CLAIMS,
)
