"""A cell of the translational grid, with the article's own metrics beside the standard ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from nltk.translate.bleu_score import brevity_penalty, modified_precision
from torch import Tensor
from torch.nn.functional import pad

from capbench.captioners.experiment import CaptioningExperiment
from capbench.data.batches import shuffled
from capbench.data.captions import Split
from capbench.data.vocabulary import END, PAD
from capbench.data.word_vectors import file_of, word_vectors
from capbench.kernels.log_prob import target_log_probs
from capbench.training.experiment import Evaluation, Inputs
from capbench.training.shares import everywhere

from .model import Translator
from .recipe import GLOVE, TranslatorRecipe

WIDTH = 17  # words of every caption of the article's data, START, END and padding included


def objective(model: Any, images: Tensor, captions: Int[Tensor, "caption length"]) -> Tensor:
    """The cross entropy of the released code: the mean over the words of a batch and one padding after each END."""
    captions = pad(captions, (0, 1), value=PAD)
    log_probs, counted = released_log_probs(model(images, captions), captions)
    return -log_probs.sum() / everywhere(counted.sum())


def released_log_probs(
    scores: Float[Tensor, "caption step word"], captions: Int[Tensor, "caption length"]
) -> tuple[Float[Tensor, "caption step"], Bool[Tensor, "caption step"]]:
    """log p of each word after the first, and whether the released code counts it; log p of the others is 0.

    `compute_loss` of Source_Code.py masks the words after START by a length that includes START, and so counts the
    step at which END is read and padding is to be predicted. The backward pass overwrites `scores`.
    """
    read, target = captions[:, :-1], captions[:, 1:]
    counted = read != PAD
    log_probs = target_log_probs(scores.flatten(0, 1), target.flatten())
    return log_probs.view_as(target) * counted, counted


class TranslationalExperiment(CaptioningExperiment):
    """One preset with one seed."""

    def __init__(
        self, recipe: TranslatorRecipe, inputs: Inputs, model: Translator, seed: int, device: torch.device
    ) -> None:
        super().__init__(recipe, inputs, model, seed, device, objective)
        self.notes: tuple[str, ...] = ()
        if recipe.glove:
            vectors, source = word_vectors(inputs.vocabulary, model.embed.embedding_dim, file_of(GLOVE))
            model.embed.weight.data.copy_(vectors)
            self.notes = (source,)

    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        """Captions of any lengths, as in the released code; with attention of nearly one, which halves the steps."""
        if self.recipe.output == "grid":
            return super().batches(epoch)
        return shuffled(len(self.train.caption_index), self.recipe.training.batch_size, self.seed, epoch)

    def score(self, split: Split, likelihood: dict[str, float]) -> Evaluation:
        scores = super().score(split, likelihood)
        metrics = {**scores.metrics, **self.as_the_article(split)}
        return replace(scores, metrics=metrics, notes=(*scores.notes, *self.notes))

    def as_the_article(self, split: Split) -> dict[str, float]:
        """Cross entropy, accuracy and BLEU of teacher-forced words, as the article defines them.

        Accuracy is over the first 16 words after START, padding included. A caption is the likeliest word of each step
        up to the first END. BLEU-n is nltk's sentence BLEU against the forced caption, with all weight on n-grams of
        length n, averaged over captions. None of them says how good a freely generated caption is. (The article's code
        divides accuracy by another count, and gives nltk the words of the reference in place of a list of references.)
        """
        total, counts, right, places = 0.0, 0, 0, 0
        scores: dict[int, list[float]] = {n: [] for n in (1, 2, 3, 4)}
        for _, images, captions in self.teacher_forced(split):
            captions = pad(captions, (0, max(1, WIDTH - captions.shape[1])), value=PAD)
            logits = self.model(images, captions)
            log_probs, counted = released_log_probs(logits, captions)
            total, counts = total - float(log_probs.double().sum()), counts + int(counted.sum())
            target, guess = captions[:, 1:], logits.argmax(-1)
            right += int((guess == target)[:, : WIDTH - 1].sum())
            places += len(captions) * (WIDTH - 1)
            for forced, written in zip(target.tolist(), guess.tolist(), strict=True):
                reference = sentence(forced)
                candidate = sentence(written[: max(WIDTH - 1, len(reference) + 2)])  # whatever the longest of a chunk
                for n, values in scores.items():
                    values.append(single_bleu(reference, candidate, n))
        bleu = {f"article_bleu{n}": 100 * float(np.mean(values)) for n, values in scores.items()}
        return {**bleu, "article_accuracy": 100 * right / places, "article_cross_entropy": total / counts}


def sentence(words: list[int]) -> list[str]:
    """The words before the first END, or else before the first padding, as the article's code cuts them."""
    stop = next((stop for stop in (END, PAD) if stop in words), None)
    return [str(word) for word in (words if stop is None else words[: words.index(stop)])]


def single_bleu(reference: list[str], candidate: list[str], n: int) -> float:
    """nltk's sentence_bleu([reference], candidate) with all weight on n: the precision of n-grams with its penalty."""
    if not candidate or not modified_precision([reference], candidate, 1).numerator:
        return 0.0
    penalty = brevity_penalty(len(reference), len(candidate))
    return float(penalty * modified_precision([reference], candidate, n))
