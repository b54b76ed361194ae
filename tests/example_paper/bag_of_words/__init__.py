"""A made-up paper: an image and the mean of a caption's words in one space."""

from __future__ import annotations

from pathlib import Path

from capbench.runs.paper import Paper

from .claims import CLAIMS
from .experiment import BagExperiment
from .model import BagOfWords
from .recipe import HEADLINE, presets

PAPER = Paper(
    name="bag_of_words",
    title="A Bag of Words beside an Image",
    citation="Nobody. Nowhere 2000",
    folder=Path(__file__).parent,
    presets=presets,
    headline=HEADLINE,
    metric="rsum",
    model=lambda recipe, vocabulary, feature_dim: BagOfWords(recipe, len(vocabulary), feature_dim),
    experiment=BagExperiment,
    claims=CLAIMS,
)
