"""The presets of Show and Tell: that of the paper and its released code, and ours.

Sources: Vinyals et al., CVPR 2015, sections 3 and 4.3.1 (embedding and LSTM of 512, SGD with a fixed rate and no
momentum, dropout, words that occur five times, beam 20). Where the paper is silent, the code that its authors released
in 2016 speaks (tensorflow/models, im2txt): rates, clipping, initial weights, the LSTM of TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import PositiveInt

from capbench.captioners.experiment import CaptioningRecipe
from capbench.training.experiment import Share, Training
from capbench.vision.extraction import View

HEADLINE = ("nic", "nic-ours", "nic-ensemble-ours")
PUBLISHED = Training(
    epochs=24, batch_size=32, learning_rate=2.0, optimizer="sgd", lr_step_epochs=8, lr_decay=0.5, clip_norm=5.0
)


@dataclass(frozen=True, kw_only=True)
class NICRecipe(CaptioningRecipe):
    """Hyper-parameters of one model."""

    embedding_dim: PositiveInt = 512
    hidden_dim: PositiveInt = 512
    dropout: Share = 0.3  # of the LSTM's inputs and outputs
    im2txt: bool = False  # whether layers, initial weights and batches are as in the released code
    standardise: bool = False  # whether the image feature is standardised over a batch
    beam_size: PositiveInt = 20
    output: Literal["vector"] = "vector"
    training: Training = PUBLISHED

    heeded: ClassVar = ("ensemble_size",)


NIC = NICRecipe(im2txt=True)
NIC_OURS = NICRecipe(
    standardise=True,
    view="views",
    training=Training(epochs=8, batch_size=64, learning_rate=1e-3, lr_step_epochs=5, clip_norm=5.0, ema_decay=0.998),
)


def presets(dataset: str) -> Mapping[str, NICRecipe]:
    """Every preset by name, in the order of the tables.

    nic is the paper's recipe. nic-ours has standardised features of four views of each image, torch's initial weights,
    batches of nearly one length, Adam, averaged weights and fewer epochs; nic-ensemble-ours is three models of nic-ours
    that decode together.
    On the scenes the same presets are smaller and shorter.
    """
    ensemble = replace(NIC_OURS, init_from="nic-ours", ensemble_size=3, training=replace(NIC_OURS.training, epochs=1))
    recipes = {"nic": NIC, "nic-ours": NIC_OURS, "nic-ensemble-ours": ensemble}
    return {name: _on_scenes(recipe) for name, recipe in recipes.items()} if dataset == "scenes" else recipes


def _on_scenes(recipe: NICRecipe) -> NICRecipe:
    """A quarter of the dimensions, with a higher rate under Adam, fewer epochs, and a narrow beam.

    Each word of a scene's caption could be another one, so that the likeliest caption is empty, and a beam of 20 finds
    it.
    """
    training = replace(recipe.training, epochs=min(8, recipe.training.epochs), lr_step_epochs=5)
    if training.optimizer == "adam":
        training = replace(training, learning_rate=3e-3, ema_decay=0.98)
    view: View = "whole" if recipe.view == "views" else recipe.view
    small = replace(recipe, embedding_dim=128, hidden_dim=128, dropout=0.2, view=view, training=training)
    return replace(small, beam_size=3, choose_beam=False)
