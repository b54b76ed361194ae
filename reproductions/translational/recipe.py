"""The presets of the translational grid, all of the article and its released code.

Source: Kocagil, Kargi, Budunoglu, "Image captioning by translational visual-to-language models" (2021), section on
training: batches of 64, Adam, norm clipping at 10, two to three epochs, beams of 1 to 9. Embedding 300, hidden 256,
batch normalisation of the image and the rate 1e-3 are those of the released code; the text differs (256, 4e-2, 1e-2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from capbench.captioners.experiment import CaptioningRecipe
from capbench.training.experiment import Training
from capbench.vision.encoders import Output
from capbench.vision.extraction import View

HEADLINE = ("lstm", "gru")
ADAM = Training(epochs=4, batch_size=64, learning_rate=1e-3, lr_patience=1, lr_decay=0.3, clip_norm=10.0, patience=2)


@dataclass(frozen=True, kw_only=True)
class TranslatorRecipe(CaptioningRecipe):
    """Hyper-parameters of one decoder; the encoder is the run's."""

    decoder: Literal["lstm", "gru"]
    attention: bool = True  # as in the text; the released decoders see the image as their first input only
    glove: bool = False  # whether word vectors are read from a file and kept
    embedding_dim: int = 300
    hidden_dim: int = 256
    beam_size: int = 3
    output: Output = "grid"
    view: View = "whole"
    training: Training = ADAM


def presets(dataset: str) -> Mapping[str, TranslatorRecipe]:
    """Every preset by name, in the order of the tables.

    lstm and gru have attention, as in the text of the article. -released has none, as in the released code; -glove has
    the word vectors of GloVe, and -augmented random crops, two options of the article. On the scenes the same presets
    are smaller and shorter.
    """
    recipes = {"lstm": TranslatorRecipe(decoder="lstm"), "gru": TranslatorRecipe(decoder="gru")}
    for name in ("lstm", "gru"):
        recipes[f"{name}-released"] = replace(recipes[name], attention=False)
        recipes[f"{name}-glove"] = replace(recipes[name], glove=True)
        recipes[f"{name}-augmented"] = replace(recipes[name], view="RC")
    return {name: _on_scenes(recipe) for name, recipe in recipes.items()} if dataset == "scenes" else recipes


def _on_scenes(recipe: TranslatorRecipe) -> TranslatorRecipe:
    training = replace(recipe.training, epochs=3, learning_rate=3e-3)
    return replace(recipe, embedding_dim=300 if recipe.glove else 64, hidden_dim=128, training=training)
