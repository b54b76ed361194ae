"""A cell of the translational grid, with the article's own metrics beside the standard ones."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from nltk.translate.bleu_score import brevity_penalty, modified_precision

from capbench.captioners.experiment import CaptioningExperiment, cross_entropy
from capbench.data.captions import Split
from capbench.data.vocabulary import END, PAD
from capbench.data.word_vectors import file_of, word_vectors
from capbench.training.experiment import Evaluation, Inputs
from reproductions.translational.model import Translator

GLOVE = "CAPBENCH_GLOVE"


class TranslationalExperiment(CaptioningExperiment):
    """One preset with one seed; the loss is the masked cross entropy."""

    def __init__(self, recipe: Any, inputs: Inputs, seed: int, device: torch.device) -> None:
        def objective(model: Any, images: Any, captions: Any) -> Any:
            return cross_entropy(model(images, captions), captions)

        super().__init__(recipe, inputs, seed, device, Translator, objective)
        self.notes: tuple[str, ...] = ()
        if recipe.glove:
            vectors, source = word_vectors(
                inputs.vocabulary, recipe.embedding_dim, file_of(GLOVE, recipe.embedding_dim)
            )
            cast(Translator, self.model).embed.weight.data.copy_(vectors)
            self.notes = (source,)

    def test(self, part: Split, likelihood: dict[str, float]) -> Evaluation:
        found = super().test(part, likelihood)
        metrics = {**found.metrics, **self.as_the_article(part)}
        metrics["article_cross_entropy"] = -likelihood["log_likelihood"]
        return Evaluation(metrics, found.arrays, (*found.notes, *self.notes))

    def as_the_article(self, part: Split) -> dict[str, float]:
        """Accuracy and BLEU as the article means them: its code divides accuracy by another count, and hands nltk the
        words of the reference where a list of references is expected.

        The captions are the likeliest next words of teacher-forced steps; accuracy counts padding as words to be
        predicted; BLEU-n is nltk's sentence BLEU against the one caption that was forced, with all weight on n-grams of
        length n, averaged over captions. None of them says how good a caption is that the model writes alone.
        """
        right = places = 0
        scores: dict[int, list[float]] = {n: [] for n in (1, 2, 3, 4)}
        for _, images, captions in self.teacher_forced(part):
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
