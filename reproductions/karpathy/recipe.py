"""The presets of Karpathy & Fei-Fei: what the paper and its released code state, and ours.

Source: CVPR 2015, sections 3.1.4, 3.2 and 4 (margin 1, SGD with momentum 0.9, batches of 100, dropout in all layers but
the recurrent ones, elements of the gradient clipped at 5, embeddings of 1,000 to 1,600, recurrences of 300 to 600, word
vectors of 300; RMSprop for the generator, beam 7). Learning rates are not printed: that of the alignment is the one of
1e-6, 1e-5 and 1e-4 whose loss fell, and stayed down, over the first steps on Flickr8K; the generator's rate, its sizes
of 256 and its epochs are the released code's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from capbench.kernels.maxsim.reference import Form
from capbench.training.experiment import Training

HEADLINE = ("sum-form", "bag", "brnn", "rnn", "rnn-regions")
ALIGNING = Training(epochs=15, batch_size=100, learning_rate=1e-5, optimizer="sgd", momentum=0.9, clip_value=5.0)
WRITING = Training(epochs=50, batch_size=100, learning_rate=1e-3, optimizer="rmsprop", clip_value=5.0)


@dataclass(frozen=True)
class Alignment:
    """Hyper-parameters of an alignment model.

    form: S_kl takes the best region of each word (equation 8), or the sum of max(0, .) over all (equation 7);
    recurrent: whether words pass through the recurrent network; window: how many neighbours on each side the
    word's own layer sees; keep: what a state starts by keeping of itself; vectors: learnt, or those of a file, kept as
    they are; standardised_roots: whether features are replaced by their square roots, of which each coordinate is
    brought to mean 0 and deviation 1 over a batch; normalise_regions: whether v has length one, so that the length of
    s_t alone says how much a word counts; beta: the affinity of neighbouring words, for snippets; crop: which boxes are
    the regions.
    """

    form: Form = "max"
    recurrent: bool = True
    window: int = 0
    embedding: int = 1024
    hidden: int = 512
    word: int = 300
    keep: float = 0.0
    vectors: Literal["learnt", "file"] = "learnt"
    margin: float = 1.0
    dropout: float = 0.5
    standardised_roots: bool = False
    normalise_regions: bool = False
    beta: float = 0.5
    min_count: int = 5
    output: Literal["regions"] = "regions"
    crop: str = "multiscale"
    start_from: str | None = None
    training: Training = ALIGNING


@dataclass(frozen=True)
class Generator:
    """Hyper-parameters of a multimodal recurrent network.

    cell: the paper's network, or an LSTM; level: whether it learns from whole images and their captions, or from
    regions and the snippets that the alignment `start_from` gives them; keep: what a state starts by keeping of itself
    (the diagonal of W_hh, or the forget gate's bias); standardise: whether each coordinate of the image's feature is
    brought to mean 0 and deviation 1 over a batch.
    """

    cell: Literal["rnn", "lstm"] = "rnn"
    level: Literal["image", "regions"] = "image"
    hidden: int = 512
    word: int = 512
    keep: float = 0.0
    dropout: float = 0.5
    standardise: bool = False
    beam_size: int = 7
    min_count: int = 5
    output: Literal["regions"] = "regions"
    crop: str = "multiscale"
    start_from: str | None = None
    metric: str = "log_likelihood"
    training: Training = WRITING


Recipe = Alignment | Generator


def protocols(dataset: str, recipe: Recipe) -> tuple[str, ...]:
    """Of COCO's test images the first 1,000 are scored, and for rankings all 5,000 too; other test sets are whole."""
    if dataset not in ("coco", "coco-norestval"):
        return ("whole",)
    return ("1K", "5K") if isinstance(recipe, Alignment) else ("1K",)


def presets(dataset: str) -> Mapping[str, Recipe]:
    """Every preset by name, in the order of the tables.

    Alignment: brnn-published is the paper's recipe with learnt word vectors; brnn is ours, with square roots of
    features, regions of length one, Adam and averaged weights; sum-form, bag (no recurrence), window (no recurrence,
    but a word's neighbours) and brnn-vectors (word vectors of a file) each differ from it in one thing, as do
    brnn-detector and brnn-file, whose regions are those of a detector and of a file. Generator: rnn-published is the
    released code's recipe, but for the smoothing of its RMSprop (0.99 here, 0.999 there); rnn and lstm are ours;
    rnn-regions learns from the snippets of brnn. On the embedded scenes, where the regions are the true boxes, the same
    presets are smaller and shorter.
    """
    brnn = Alignment(
        standardised_roots=True,
        normalise_regions=True,
        dropout=0.2,
        keep=0.5,
        training=replace(ALIGNING, epochs=5, learning_rate=2e-3, optimizer="adam", average=0.998),
    )
    writing = replace(WRITING, epochs=8, learning_rate=1e-3, optimizer="adam", decay_every=5, average=0.998)
    rnn = Generator(standardise=True, keep=0.5, training=writing)
    found: dict[str, Recipe] = {
        "sum-form": replace(brnn, form="sum"),
        "bag": replace(brnn, recurrent=False),
        "window": replace(brnn, recurrent=False, window=1),
        "brnn-published": Alignment(),
        "brnn": brnn,
        "brnn-vectors": replace(brnn, vectors="file"),
        "brnn-detector": replace(brnn, crop="fasterrcnn_resnet50_fpn_v2"),
        "brnn-file": replace(brnn, crop="file"),
        "rnn-published": Generator(hidden=256, word=256),
        "rnn": rnn,
        "rnn-regions": replace(rnn, level="regions", start_from="brnn"),
        "lstm": replace(rnn, cell="lstm", keep=1.0),
    }
    if dataset == "scenes":
        return {name: _on_scenes(recipe) for name, recipe in found.items() if recipe.crop == "multiscale"}
    return found


def _on_scenes(recipe: Recipe) -> Recipe:
    """Smaller, and, where the schedule is ours, three epochs; the true boxes are the regions."""
    training = recipe.training
    if training.optimizer == "adam":
        training = replace(training, epochs=3, learning_rate=2e-3, decay_every=2, average=0.98)
    if isinstance(recipe, Alignment):
        word = recipe.word if recipe.vectors == "file" else 64
        return replace(recipe, embedding=128, hidden=64, word=word, dropout=0.2, crop="objects", training=training)
    return replace(recipe, hidden=128, word=64, dropout=0.2, crop="objects", training=training)
