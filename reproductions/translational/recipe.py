"""The presets of the translational grid: what the article and its released code state.

Source: Kocagil, Kargi, Budunoglu, "Image captioning by translational visual-to-language models" (2021), section on
training: batch 64, Adam, norm clipping at 10, two to three epochs, beams of 1 to 9; embedding 300, hidden 256, batch
normalisation of the image and the rate 1e-3 from the released code, which differs from the text (256, 4e-2 and 1e-2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from capbench.training.experiment import Training

HEADLINE = ("lstm", "gru")
ADAM = Training(epochs=4, batch_size=64, learning_rate=1e-3, plateau=1, decay=0.3, clip_norm=10.0, patience=2)


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one decoder; the encoder is the run's.

    attention: whether each word also sees the annotations, as the text says; the released decoders see the image as
    their first input and no more. glove: the word vectors are read from a file and kept. crop RC is the article's
    random crop and mirror at each step.
    """

    decoder: Literal["lstm", "gru"]
    attention: bool = True
    glove: bool = False
    embedding: int = 300
    hidden: int = 256
    beam_size: int = 3
    min_count: int = 5
    output: Literal["grid"] = "grid"
    crop: Literal["1C", "RC", "whole"] = "whole"
    start_from: str | None = None
    training: Training = ADAM


def presets(dataset: str) -> Mapping[str, Recipe]:
    """Every preset by name, in the order of the tables.

    lstm and gru, with attention; -released, without it, as the released code has them; -glove, with the word vectors
    of GloVe; -augmented, with random crops. On the embedded scenes the same presets are smaller and shorter.
    """
    found = {name: Recipe(name) for name in ("lstm", "gru")}
    for name in ("lstm", "gru"):
        found[f"{name}-released"] = replace(found[name], attention=False)
        found[f"{name}-glove"] = replace(found[name], glove=True)
        found[f"{name}-augmented"] = replace(found[name], crop="RC")
    return {name: _on_scenes(recipe) for name, recipe in found.items()} if dataset == "scenes" else found


def _on_scenes(recipe: Recipe) -> Recipe:
    training = replace(recipe.training, epochs=3, learning_rate=3e-3)
    return replace(recipe, embedding=300 if recipe.glove else 64, hidden=128, training=training)
