"""Captioners: what a model that writes captions provides, and how one is trained, scored and decoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from capbench.captioners.decoding import Captions, State, Step, beam_search, ensemble, greedy, join_states
from capbench.data.batches import length_grouped, padded
from capbench.data.captions import Split
from capbench.data.vocabulary import END, PAD, START, UNKNOWN, Vocabulary
from capbench.kernels.log_prob import target_log_probs
from capbench.metrics.captioning import CaptionScorer, bleu, bleu_statistics
from capbench.metrics.diversity import distinct_n, novelty, self_bleu, vocabulary_used
from capbench.training.experiment import Evaluation, Inputs, Recipe
from capbench.training.machine import bf16_where_native
from capbench.training.sources import FeatureSource

IMAGES_AT_ONCE, CAPTIONS_AT_ONCE = 100, 250
LONGEST = 20  # words of a caption that is written, END included
BEAMS = range(1, 10)  # besides the recipe's own
N_BEST = 15  # captions of an image that are compared with each other (Show and Tell, section 4.3.4)


@runtime_checkable
class Captioner(Protocol):
    """A model p(S_t | I, S_0 ... S_{t-1}) of captions S given an image I: one call to train on, three to decode."""

    def __call__(self, images: Tensor, captions: Int[Tensor, "caption length"]) -> Float[Tensor, "caption step word"]:
        """Scores (logits) of word t + 1 at entry t, given the words up to t. There is one image for each caption."""

    def start(self, images: Tensor) -> State:
        """The state before the first word, [image, 1, ...]."""

    def step(self, images: Tensor) -> Step:
        """The step of `capbench.captioners.decoding` for these images."""


@dataclass(frozen=True, kw_only=True)
class CaptioningRecipe(Recipe):
    """The recipe of a model that writes captions."""

    beam_size: int  # of the captions that are scored


Objective = Callable[[Any, Tensor, Tensor], Tensor]  # model, images, captions -> scalar
MakeModel = Callable[[Any, Vocabulary, int], nn.Module]  # recipe, vocabulary, feature dimension -> captioner


class Ensemble(nn.Module):
    """Captioners that write together, by the mean of their probabilities."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor, captions: Int[Tensor, "caption length"]) -> Float[Tensor, "caption step word"]:
        log_probs = torch.stack([member(images, captions).float().log_softmax(-1) for member in self.members])
        return log_probs.logsumexp(0) - math.log(len(self.members))

    def start(self, images: Tensor) -> State:
        return join_states([member.start(images) for member in self._captioners()])

    def step(self, images: Tensor) -> Step:
        return ensemble([member.step(images) for member in self._captioners()])

    def _captioners(self) -> list[Any]:
        return list(self.members)


def maybe_joined(make_model: MakeModel) -> MakeModel:
    """`make_model`, or an ensemble of what it makes where the recipe has several members."""

    def make(recipe: Any, vocabulary: Vocabulary, feature_dim: int) -> nn.Module:
        members = [make_model(recipe, vocabulary, feature_dim) for _ in range(recipe.ensemble_size)]
        return members[0] if len(members) == 1 else Ensemble(members)

    return make


def word_log_probs(
    scores: Float[Tensor, "caption step word"], captions: Int[Tensor, "caption length"]
) -> tuple[Float[Tensor, "caption step"], Bool[Tensor, "caption step"]]:
    """log p of each word after the first, 0 where there is none, and where there is one.

    The backward pass overwrites `scores` (see `target_log_probs`).
    """
    target = captions[:, 1:]
    present = target != PAD
    log_probs = target_log_probs(scores.flatten(0, 1), target.flatten())
    return log_probs.view_as(target) * present, present


def cross_entropy(scores: Float[Tensor, "caption step word"], captions: Int[Tensor, "caption length"]) -> Tensor:
    """The mean of -log p over the words of a batch, padding left out (masked cross entropy); `word_log_probs` warns."""
    log_probs, present = word_log_probs(scores, captions)
    return -log_probs.sum() / present.sum()


def caption_images(
    model: Any, images: Float[Tensor, "image ... dim"], beam_size: int, n_best: int = 1, trace: Sequence[str] = ()
) -> Captions:
    """The `n_best` captions of each image, of at most `LONGEST` words; the unknown word is never written."""
    ends: dict[str, Any] = {"start": START, "end": END, "never": (UNKNOWN,), "trace": trace}
    if beam_size == n_best == 1:
        return greedy(model.step(images), model.start(images), len(images), LONGEST, **ends)
    return beam_search(model.step(images), model.start(images), len(images), beam_size, LONGEST, n_best=n_best, **ends)


class CaptioningExperiment:
    """One preset with one seed. A batch is captions of the training split, each with its image.

    An ensemble joins trained models and has nothing to learn: its one epoch has no batches.
    """

    def __init__(
        self,
        recipe: CaptioningRecipe,
        inputs: Inputs,
        seed: int,
        device: torch.device,
        make_model: MakeModel,
        objective: Objective,
    ) -> None:
        torch.manual_seed(seed)
        self.recipe, self.inputs, self.seed, self.device, self.objective = recipe, inputs, seed, device, objective
        self.train = inputs.dataset.split("train")
        self.model = make_model(recipe, inputs.vocabulary, inputs.features.array.shape[-1]).to(device)
        if isinstance(self.model, Ensemble):
            for member, snapshot in zip(self.model.members, inputs.init, strict=True):
                member.load_state_dict(snapshot)
        self.source = FeatureSource(inputs, recipe, device)

    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        if isinstance(self.model, Ensemble):
            return []
        lengths = np.array([len(caption) for caption in self.inputs.encoded("train")])
        return length_grouped(lengths, self.recipe.training.batch_size, self.seed, epoch)

    def loss(self, batch: np.ndarray, epoch: int) -> Tensor:
        images = self.source.training(self.train.image_index[self.train.image_of_caption[batch]])
        captions, _ = padded([self.inputs.encoded("train")[i] for i in batch])
        return self.objective(self.model, images, captions.to(self.device))

    def evaluate(self, split: str, protocol: str) -> Evaluation:
        """Validation: likelihood and the BLEU of greedy captions. Test: every caption metric, at every beam.

        Under protocol "1K" the first 1,000 images of the split, else the whole split.
        """
        part = self.inputs.dataset.split(split)
        part = part.first(1000) if protocol == "1K" else part
        with bf16_where_native(self.device, self.recipe.training.precision):
            likelihood = self.likelihood(part)
            if split == "val":
                written = self.sentences(self.write(part, beam_size=1)[:, 0])
                tokens = part.tokens
                references = [[" ".join(tokens[i]) for i in own] for own in captions_of_images(part)]
                scores = bleu(bleu_statistics(written, references).sum(0))
                return Evaluation({**likelihood, **{f"bleu{n}": float(s) for n, s in enumerate(scores, 1)}}, {})
            return self.test(part, likelihood)

    def likelihood(self, part: Split) -> dict[str, float]:
        """Per-word perplexity and its negative logarithm, and how often the likeliest next word is the right one."""
        total, right, words = 0.0, 0, 0
        for _, images, captions in self.teacher_forced(part):
            scores = self.model(images, captions)
            log_probs, present = word_log_probs(scores, captions)
            total += float(log_probs.double().sum())
            right += int((present & (scores.argmax(-1) == captions[:, 1:])).sum())
            words += int(present.sum())
        mean = total / words
        return {"log_likelihood": mean, "perplexity": math.exp(-mean), "word_accuracy": 100 * right / words}

    def teacher_forced(self, part: Split) -> Iterator[tuple[np.ndarray, Tensor, Int[Tensor, "caption length"]]]:
        """Chunks of captions: their numbers within the split, their images and their words; a length together."""
        encoded = self.inputs.encoded(part.name)
        order = np.argsort([len(caption) for caption in encoded], kind="stable")
        for chunk in np.split(order, range(CAPTIONS_AT_ONCE, len(order), CAPTIONS_AT_ONCE)):
            captions, _ = padded([encoded[i] for i in chunk])
            yield chunk, self.source.testing(part.image_index[part.image_of_caption[chunk]]), captions.to(self.device)

    def decode(self, part: Split, beam_size: int, n_best: int = 1) -> Iterator[Captions]:
        """The captions of the images of a split, some images at a time; see `caption_images`."""
        rows = part.image_index
        for chunk in np.split(rows, range(IMAGES_AT_ONCE, len(rows), IMAGES_AT_ONCE)):
            yield caption_images(self.model, self.source.testing(chunk), beam_size, n_best)

    def write(self, part: Split, beam_size: int, n_best: int = 1) -> Int[np.ndarray, "image n_best length"]:
        """The best captions of each image as word numbers, padded."""
        return np.concatenate([found.words.cpu().numpy() for found in self.decode(part, beam_size, n_best)])

    def test(self, part: Split, likelihood: dict[str, float]) -> Evaluation:
        """All caption metrics at the recipe's beam, BLEU at every other, and how new and varied the captions are."""
        captions, beam = part.captions, self.recipe.beam_size
        scorer = CaptionScorer([[captions[i] for i in own] for own in captions_of_images(part)])
        best = self.write(part, beam, n_best=min(beam, N_BEST))
        sentences = {beam: self.sentences(best[:, 0])}
        with ThreadPoolExecutor(1) as beside:  # METEOR is a process of its own: the other beams are searched meanwhile
            scored = beside.submit(scorer.score, sentences[beam])
            sentences |= {size: self.sentences(self.write(part, size)[:, 0]) for size in BEAMS if size != beam}
        scores, sentences = scored.result(), dict(sorted(sentences.items()))
        metrics, arrays = {**likelihood, **scores.metrics}, {"captions": best, **scores.per_image}
        tokens = iter(scorer.tokenize([sentence for some in sentences.values() for sentence in some]))
        for size, some in sentences.items():
            statistics = bleu_statistics([next(tokens) for _ in some], scorer.references)
            arrays[f"bleu_beam{size}"] = statistics
            metrics[f"bleu4_beam{size}"] = float(bleu(statistics.sum(0))[3])
        arrays |= {f"{name}_statistics": values for name, values in scores.statistics.items()}
        known = self.train.captions
        metrics["novelty"] = novelty(sentences[beam], known)
        metrics["novelty_n_best"] = novelty([one for words in best for one in self.sentences(words)], known)
        metrics["distinct2"] = distinct_n(sentences[beam], 2)
        metrics["vocabulary_used"] = float(vocabulary_used(sentences[beam]))
        if best.shape[1] > 1:
            metrics["self_bleu"] = self_bleu([self.sentences(words) for words in best])
        return Evaluation(metrics, arrays, scores.notes)

    def sentences(self, written: Int[np.ndarray, "caption length"]) -> list[str]:
        return [" ".join(self.inputs.vocabulary.decode(words)) for words in written.tolist()]


def captions_of_images(part: Split) -> list[list[int]]:
    """The captions of each image of a split, as numbers within the split."""
    own: list[list[int]] = [[] for _ in part.image_index]
    for caption, image in enumerate(part.image_of_caption):
        own[image].append(caption)
    return own
