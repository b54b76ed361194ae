"""Image captioning by translational visual-to-language models (Kocagil, Kargi, Budunoglu; 2021)."""

from __future__ import annotations

from pathlib import Path

from capbench.runs.paper import Paper

from .claims import CLAIMS
from .experiment import TranslationalExperiment
from .model import Translator
from .recipe import HEADLINE, presets

PAPER = Paper(
    name="translational",
    title="Image Captioning by Translational Visual-to-Language Models",
    citation="Kocagil, Kargi, Budunoglu. 2021, github.com/cankocagil/Image-Captioning",
    folder=Path(__file__).parent,
    presets=presets,
    headline=HEADLINE,
    metric="log_likelihood",
    model=Translator,
    experiment=TranslationalExperiment,
    claims=CLAIMS,
)
