"""Deep Visual-Semantic Alignments for Generating Image Descriptions (Karpathy, Fei-Fei; CVPR 2015)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from capbench.data.vocabulary import Vocabulary
from capbench.runs.paper import Paper
from capbench.training.experiment import Experiment, Inputs

from .alignment import AlignmentModel
from .claims import CLAIMS
from .experiment import AlignmentExperiment
from .generation import GeneratorExperiment, RegionGeneratorExperiment
from .generator import MultimodalRNN
from .recipe import HEADLINE, AlignmentRecipe, GeneratorRecipe, presets, protocols


def model(recipe: AlignmentRecipe | GeneratorRecipe, vocabulary: Vocabulary, feature_dim: int) -> nn.Module:
    """An alignment model or a generator."""
    if isinstance(recipe, AlignmentRecipe):
        return AlignmentModel(recipe, len(vocabulary), feature_dim)
    return MultimodalRNN(recipe, len(vocabulary), feature_dim)


def experiment(
    recipe: AlignmentRecipe | GeneratorRecipe, inputs: Inputs, model: Any, seed: int, device: torch.device
) -> Experiment:
    """An alignment, a generator of captions, or a generator of snippets."""
    if isinstance(recipe, AlignmentRecipe):
        return AlignmentExperiment(recipe, inputs, model, seed, device)
    kind = {"image": GeneratorExperiment, "regions": RegionGeneratorExperiment}[recipe.level]
    return kind(recipe, inputs, model, seed, device)


PAPER = Paper(
    name="karpathy",
    title="Deep Visual-Semantic Alignments for Generating Image Descriptions",
    citation="Karpathy, Fei-Fei. CVPR 2015, arXiv 1412.2306",
    folder=Path(__file__).parent,
    presets=presets,
    headline=HEADLINE,
    metric="rsum",
    model=model,
    experiment=experiment,
    claims=CLAIMS,
    protocols=protocols,
)
