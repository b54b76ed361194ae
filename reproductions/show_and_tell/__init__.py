"""Show and Tell: A Neural Image Caption Generator (Vinyals, Toshev, Bengio, Erhan; CVPR 2015)."""

from __future__ import annotations

from pathlib import Path

from capbench.captioners.experiment import with_ensembles
from capbench.runs.paper import Paper

from .claims import CLAIMS
from .experiment import ShowAndTellExperiment
from .model import ShowAndTell
from .recipe import HEADLINE, presets
from .released import read_released

make_model = with_ensembles(lambda recipe, vocabulary, feature_dim: ShowAndTell(recipe, len(vocabulary), feature_dim))

PAPER = Paper(
    name="show_and_tell",
    title="Show and Tell: A Neural Image Caption Generator",
    citation="Vinyals, Toshev, Bengio, Erhan. CVPR 2015, arXiv 1411.4555",
    folder=Path(__file__).parent,
    presets=presets,
    headline=HEADLINE,
    metric="log_likelihood",
    model=make_model,
    experiment=ShowAndTellExperiment,
    claims=CLAIMS,
    released=read_released,
)
