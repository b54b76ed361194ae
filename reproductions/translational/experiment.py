"""A cell of the translational grid, with the article's own metrics beside the standard ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from nltk.translate.bleu_score import brevity_penalty, modified_precision
from torch import Tensor

from capbench.captioners.experiment import CaptioningExperiment, cross_entropy
from capbench.data.captions import Split
from capbench.data.vocabulary import END, PAD
from capbench.data.word_vectors import file_of, word_vectors
from capbench.training.experiment import Evaluation, Inputs
from reproductions.translational.model import Translator
from reproductions.translational.recipe import TranslatorRecipe

GLOVE = "CAPBENCH_GLOVE"


def objective(model: Any, images: Tensor, captions: Tensor) -> Tensor:
    """The masked cross entropy."""
    return cross_entropy(model(images, captions), captions)


class TranslationalExperiment(CaptioningExperiment):
    """One preset with one seed."""

    def __init__(
        self, recipe: TranslatorRecipe, inputs: Inputs, model: Translator, seed: int, device: torch.device
    ) -> None:
        super().__init__(recipe, inputs, model, seed, device, objective)
        self.notes: tuple[str, ...] = ()
        if recipe.glove:
            dim = recipe.embedding_dim
            vectors, source = word_vectors(inputs.vocabulary, dim, file_of(GLOVE))
            model.embed.weight.data.copy_(vectors)
            self.notes = (source,)

    def score(self, split: Split, likelihood: dict[str, float]) -> Evaluation:
        scores = super().score(split, likelihood)
        metrics = {**scores.metrics, **self.as_the_article(split)}
        metrics["article_cross_entropy"] = -likelihood["log_likelihood"]
        return Evaluation(metrics, scores.arrays, (*scores.notes, *self.notes))

    def as_the_article(self, split: Split) -> dict[str, float]:
        """Accuracy and BLEU as the text of the article defines them.

        A caption is the likeliest next words of teacher-forced steps. Accuracy counts padding as words. BLEU-n is
        nltk's sentence BLEU against the forced caption, with all weight on n-grams of length n, averaged over captions.
        None of them says how good a freely generated caption is. (The article's code divides accuracy by another count,
        and gives nltk the words of the reference in place of a list of references.)
        """
        right = places = 0
        scores: dict[int, list[float]] = {n: [] for n in (1, 2, 3, 4)}
        for _, images, captions in self.teacher_forced(split):
            logits = self.model(images, captions)
            target, guess = captions[:, 1:], logits.argmax(-1)
            right += int((guess == target).sum())
            places += target.numel()
            for forced, written in zip(target.tolist(), guess.tolist(), strict=True):
                length = forced.index(END)
                reference = [str(word) for word in forced[:length]]
                candidate = [str(word) for word in written[:length] if word not in (END, PAD)]
                for n, values in scores.items():
                    values.append(single_bleu(reference, candidate, n))
        bleu = {f"article_bleu{n}": 100 * float(np.mean(values)) for n, values in scores.items()}
        return {**bleu, "article_accuracy": 100 * right / places}


def single_bleu(reference: list[str], candidate: list[str], n: int) -> float:
    """nltk's sentence_bleu([reference], candidate) with all weight on n: the precision of n-grams with its penalty."""
    if not candidate or not modified_precision([reference], candidate, 1).numerator:
        return 0.0
    penalty = brevity_penalty(len(reference), len(candidate))
    return float(penalty * modified_precision([reference], candidate, n))
