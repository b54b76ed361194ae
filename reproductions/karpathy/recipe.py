"""The presets of Karpathy & Fei-Fei: those of the paper and its released code, and ours.

Sources: CVPR 2015, sections 3.1.4, 3.2 and 4 (margin 1, SGD with momentum 0.9, batches of 100, dropout in all but the
recurrent layers, gradients clipped elementwise at 5, embeddings of 1,000 to 1,600, recurrences of 300 to 600, word
vectors of 300; RMSprop for the generator, beam 7). Learning rates are not printed. The alignment's is
1e-5: at 3e-5, which learns faster in the first 200 steps, the loss on Flickr8K rises again from the second epoch on.
The generator's rate, sizes of 256, epochs and layers are those of the released code, karpathy/neuraltalk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from capbench.base.errors import CapbenchError
from capbench.base.files import sha256
from capbench.captioners.experiment import CaptioningRecipe
from capbench.data.word_vectors import dimension_of, file_of
from capbench.kernels.maxsim.reference import Form
from capbench.metrics.alignment import BETAS
from capbench.metrics.rsum import RECALLS
from capbench.training.experiment import Recipe, Share, Training
from capbench.vision.extraction import View
from capbench.vision.regions import Provider

HEADLINE = ("sum-form-ours", "bag-ours", "brnn-ours", "rnn-ours", "rnn-regions-ours")
VECTORS = ("CAPBENCH_WORD2VEC", "CAPBENCH_GLOVE")  # what names the file of word vectors, the first that is set
ALIGNING = Training(epochs=12, batch_size=100, learning_rate=1e-5, optimizer="sgd", momentum=0.9, clip_value=5.0)
WRITING = Training(
    epochs=50,
    batch_size=100,
    learning_rate=1e-3,
    optimizer="rmsprop",
    rms_decay=0.999,
    rms_epsilon=1e-8,
    weight_decay=1e-10,  # a cost of 1e-8 a batch
    clip_value=5.0,
)


@dataclass(frozen=True, kw_only=True)
class AlignmentRecipe(Recipe):
    """Hyper-parameters of an alignment model."""

    form: Form = "max"  # of S_kl: each word's best region (equation 8), or the sum of max(0, .) (equation 7)
    recurrent: bool = True  # whether words pass through the bidirectional recurrent network
    window: NonNegativeInt = 0  # how many neighbours on each side W_e sees
    embedding_dim: PositiveInt = 1024
    hidden_dim: PositiveInt = 512
    word_dim: PositiveInt | None = 300  # None: that of the file of word vectors
    vectors_sha256: str | None = None  # of the file of word vectors
    recurrent_init: float = 0.0  # diagonal of the initial W_f and W_b, all else 0; 0: random matrices
    word_vectors: Literal["learnt", "file"] = "learnt"  # file: read from a file and kept
    margin: NonNegativeFloat = 1.0
    dropout: Share = 0.5
    shared_mask: bool = False  # whether dropout takes the same features from all regions of an image
    standardised_roots: bool = False  # whether features become square roots, standardised over a batch
    normalise_regions: bool = False  # whether v has length one, so that |s_t| alone says how much a word counts
    beta: NonNegativeFloat = 0.5  # affinity of neighbouring words, for snippets
    output: Literal["regions"] = "regions"
    view: View = "whole"
    region_provider: Provider | None = "multiscale"
    training: Training = ALIGNING

    of_files: ClassVar = ("word_dim", "vectors_sha256")

    @property
    def choosers(self) -> tuple[str, ...]:
        return (*RECALLS, "rsum", "pointing", "overlap", *(f"snippet_f1_beta{beta:g}" for beta in BETAS))

    def here(self) -> AlignmentRecipe:
        if self.word_vectors == "learnt" or self.vectors_sha256 is not None:
            return self
        path = file_of(*VECTORS)
        return replace(self, word_dim=dimension_of(path), vectors_sha256=sha256(path))

    def check(self, source: Recipe | None) -> None:
        super().check(source)
        if self.word_vectors == "learnt" and self.word_dim is None:
            raise CapbenchError("word_dim is None, and word_vectors are learnt; set word_dim to a number")


@dataclass(frozen=True, kw_only=True)
class GeneratorRecipe(CaptioningRecipe):
    """Hyper-parameters of a multimodal recurrent network."""

    cell: Literal["rnn", "lstm"] = "rnn"  # the paper's network, or the LSTM of the released code
    level: Literal["image", "regions"] = "image"  # regions: learns from the snippets of the alignment `init_from`
    hidden_dim: PositiveInt = 512
    word_dim: PositiveInt = 512
    recurrent_init: float = 0.0  # diagonal of the initial W_hh, or initial bias of the LSTM's forget gate
    dropout: Share = 0.5
    standardise: bool = False  # whether the image feature is standardised over a batch
    feed_image: Literal["once", "always"] = "once"  # at the first step, or at every step
    released_layers: bool = False  # biases in W_hi and W_hh, uniform initial weights, dropout behind W_hi, not before
    unknown_words: Literal["predict", "skip"] = "predict"  # what becomes of words that are too rare
    cost_per: Literal["word", "sentence"] = "word"  # what the gradient that is clipped is an average over
    beam_size: PositiveInt = 7
    output: Literal["regions"] = "regions"
    view: View = "whole"
    region_provider: Provider | None = "multiscale"
    metric: str | None = "log_likelihood"
    training: Training = WRITING

    @property
    def continues(self) -> bool:
        return self.level == "image" and super().continues

    def check(self, source: Recipe | None) -> None:
        super().check(source)
        if self.level == "regions" and not isinstance(source, AlignmentRecipe):
            fault = f"level is regions, and init_from is {self.init_from}, no alignment whose snippets to learn from"
            raise CapbenchError(f"{fault}; set init_from to an alignment, such as brnn-ours")

    @property
    def choosers(self) -> tuple[str, ...]:
        return ("log_likelihood", "word_accuracy") if self.level == "regions" else super().choosers


def protocols(dataset: str, recipe: Recipe) -> tuple[str, ...]:
    """Of COCO the first 1,000 test images are scored, and for rankings all 5,000 too; other test sets are whole."""
    if dataset not in ("coco", "coco-norestval"):
        return ("whole",)
    return ("1K", "5K") if isinstance(recipe, AlignmentRecipe) else ("1K",)


def presets(dataset: str) -> Mapping[str, AlignmentRecipe | GeneratorRecipe]:
    """Every preset by name, in the order of the tables.

    The paper's: brnn, with learnt word vectors; rnn, the released code's recipe with the image at the first step, as in
    the text; rnn-released, with the image at every step, the default of the code.

    Our alignments: brnn-ours has square roots of features, regions of length one, Adam and averaged weights. Each of
    the others differs from it in one thing: sum-form-ours, bag-ours (no recurrence), window-ours (a word's neighbours
    in place of the recurrence), brnn-vectors-ours (word vectors of a file), brnn-detector-ours and brnn-file-ours
    (regions of a detector, of a file).

    Our generators: rnn-ours and lstm-ours; rnn-regions-ours learns from the snippets of brnn-ours.

    On the scenes, where the regions are the true boxes, the same presets are smaller and shorter.
    """
    brnn = AlignmentRecipe(
        standardised_roots=True,
        normalise_regions=True,
        dropout=0.2,
        shared_mask=True,
        recurrent_init=0.5,
        training=replace(ALIGNING, epochs=8, learning_rate=2e-3, optimizer="adam", lr_step_epochs=5, ema_decay=0.998),
    )
    released = GeneratorRecipe(
        hidden_dim=256, word_dim=256, released_layers=True, unknown_words="skip", cost_per="sentence"
    )
    writing = Training(batch_size=100, epochs=8, learning_rate=1e-3, clip_value=5.0, lr_step_epochs=5, ema_decay=0.998)
    rnn = GeneratorRecipe(standardise=True, recurrent_init=0.5, training=writing)
    recipes: dict[str, AlignmentRecipe | GeneratorRecipe] = {
        "sum-form-ours": replace(brnn, form="sum"),
        "bag-ours": replace(brnn, recurrent=False),
        "window-ours": replace(brnn, recurrent=False, window=1),
        "brnn": AlignmentRecipe(),
        "brnn-ours": brnn,
        "brnn-vectors-ours": replace(brnn, word_vectors="file", word_dim=None),
        "brnn-detector-ours": replace(brnn, region_provider="fasterrcnn_resnet50_fpn_v2"),
        "brnn-file-ours": replace(brnn, region_provider="file"),
        "rnn": released,
        "rnn-released": replace(released, feed_image="always"),
        "rnn-ours": rnn,
        "rnn-regions-ours": replace(rnn, level="regions", init_from="brnn-ours"),
        "lstm-ours": replace(rnn, cell="lstm", recurrent_init=1.0),
    }
    if dataset == "scenes":
        return {name: _on_scenes(recipe) for name, recipe in recipes.items() if recipe.region_provider == "multiscale"}
    return recipes


def _on_scenes(recipe: AlignmentRecipe | GeneratorRecipe) -> AlignmentRecipe | GeneratorRecipe:
    """Smaller, with the true boxes as regions; three epochs where the schedule is ours."""
    training = recipe.training
    if training.optimizer == "adam":
        training = replace(training, epochs=3, learning_rate=2e-3, lr_step_epochs=2, ema_decay=0.98)
    small = replace(recipe, word_dim=64, dropout=0.2, region_provider="objects", training=training)
    if isinstance(small, GeneratorRecipe):
        return replace(small, hidden_dim=128, choose_beam=False)
    word_dim = None if small.word_vectors == "file" else 64
    return replace(small, embedding_dim=128, hidden_dim=64, word_dim=word_dim)
