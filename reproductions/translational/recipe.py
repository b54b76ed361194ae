"""The presets of the translational grid, all of the article and its released code.

Source: Kocagil, Kargi, Budunoglu, "Image captioning by translational visual-to-language models" (2021), section on
training: batches of 64, Adam, norm clipping at 10, two to three epochs of 340,114 captions, beams of 1 to 9. Where the
text and Source_Code.py differ, the code counts: embedding 300 (text: 256), hidden 256, and a rate of 1e-3 (text: 4e-2
and 1e-2) that falls by 1 % at the start of each phase and after each 1,000 of its batches. An epoch is a phase of
training and one of validation, each of fewer batches here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import PositiveInt

from capbench.base.errors import CapbenchError
from capbench.base.files import sha256
from capbench.captioners.experiment import CaptioningRecipe
from capbench.data.word_vectors import dimension_of, file_of
from capbench.training.experiment import Recipe, Training
from capbench.vision.encoders import Output
from capbench.vision.extraction import View

GLOVE = "CAPBENCH_GLOVE"  # names the file of word vectors
HEADLINE = ("lstm", "gru")
ADAM = Training(
    epochs=12, batch_size=64, learning_rate=1e-3, lr_step_epochs=1, lr_decay=0.99**2, clip_norm=10.0, patience=1
)


@dataclass(frozen=True, kw_only=True)
class TranslatorRecipe(CaptioningRecipe):
    """Hyper-parameters of one decoder; the encoder is the run's."""

    decoder: Literal["lstm", "gru"]
    attention: bool = True  # as in the text; the released decoders see one vector, as their first input only
    glove: bool = False  # whether word vectors are read from a file and kept
    embedding_dim: PositiveInt | None = 300  # None: that of the file of word vectors
    vectors_sha256: str | None = None  # of the file of word vectors
    hidden_dim: PositiveInt = 256
    beam_size: PositiveInt = 3
    output: Output = "grid"
    view: View = "whole"
    training: Training = ADAM

    of_files: ClassVar = ("embedding_dim", "vectors_sha256")

    def here(self) -> TranslatorRecipe:
        if not self.glove or self.vectors_sha256 is not None:
            return self
        path = file_of(GLOVE)
        return replace(self, embedding_dim=dimension_of(path), vectors_sha256=sha256(path))

    def check(self, source: Recipe | None) -> None:
        super().check(source)
        if not self.glove and self.embedding_dim is None:
            raise CapbenchError("embedding_dim is None, and glove is False; set embedding_dim to a number")


def presets(dataset: str) -> Mapping[str, TranslatorRecipe]:
    """Every preset by name, in the order of the tables.

    lstm and gru have attention, as in the text of the article. -released is the released code: without attention, and
    with the word vectors of GloVe. -glove has these vectors and attention; -augmented, random crops. On the scenes the
    same presets are smaller and shorter.
    """
    recipes = {"lstm": TranslatorRecipe(decoder="lstm"), "gru": TranslatorRecipe(decoder="gru")}
    for name in ("lstm", "gru"):
        glove = replace(recipes[name], glove=True, embedding_dim=None)
        recipes[f"{name}-released"] = replace(glove, attention=False, output="vector")
        recipes[f"{name}-glove"] = glove
        recipes[f"{name}-augmented"] = replace(recipes[name], view="RC")
    return {name: _on_scenes(recipe) for name, recipe in recipes.items()} if dataset == "scenes" else recipes


def _on_scenes(recipe: TranslatorRecipe) -> TranslatorRecipe:
    training = replace(recipe.training, epochs=3, learning_rate=3e-3)
    small = replace(recipe, embedding_dim=None if recipe.glove else 64, hidden_dim=128)
    return replace(small, choose_beam=False, training=training)
