"""What a captioner provides, and how one is trained, scored and decoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from pydantic import PositiveInt
from torch import Tensor, nn

from capbench.base.errors import CapbenchError
from capbench.captioners.decoding import Captions as Decoded
from capbench.captioners.decoding import State, Step, beam_search, ensemble, join_states, sample
from capbench.data.batches import length_grouped, padded
from capbench.data.captions import Split
from capbench.data.vocabulary import END, PAD, START, UNKNOWN, Vocabulary
from capbench.kernels.log_prob import target_log_probs
from capbench.metrics.captioning import CaptionScorer, bleu, bleu_statistics
from capbench.metrics.diversity import distinct_n, self_bleu, vocabulary_used
from capbench.metrics.jars import kill_all
from capbench.metrics.retrieval import scored
from capbench.scoring.outputs import Captions
from capbench.scoring.score import novelties
from capbench.training.experiment import Evaluation, Inputs, Recipe
from capbench.training.machine import bf16_where_native
from capbench.training.processes import main, mapped
from capbench.training.shares import everywhere
from capbench.training.sources import FeatureSource

IMAGES_AT_ONCE, CAPTIONS_AT_ONCE = 100, 250
LONGEST = 20  # words of a generated caption, END included
BEAMS = range(1, 10)  # widths that are tried besides the recipe's own
N_BEST = 15  # captions of an image whose variety is measured (Show and Tell, section 4.3.4)


@runtime_checkable
class Captioner(Protocol):
    """A model p(S_t | I, S_0 ... S_{t-1}) of captions S given an image I."""

    def __call__(self, images: Tensor, captions: Int[Tensor, "caption length"]) -> Float[Tensor, "caption step word"]:
        """Logits for training, one image for each caption: entry t is of word t + 1, given the words up to t."""

    def start(self, images: Tensor) -> State:
        """The state before the first word, [image, 1, ...]."""

    def step(self, images: Tensor) -> Step:
        """The step of `capbench.captioners.decoding` for these images."""


@dataclass(frozen=True, kw_only=True)
class CaptioningRecipe(Recipe):
    """Hyper-parameters of a model that writes captions."""

    beam_size: PositiveInt  # the paper's width of the beam, or ours where it states none
    choose_beam: bool = True  # whether another width writes the captions if it has a better BLEU-4 on validation

    @property
    def choosers(self) -> tuple[str, ...]:
        return ("log_likelihood", "word_accuracy", *(f"bleu{n}" for n in range(1, 5)))


Objective = Callable[[Any, Tensor, Tensor], Tensor]  # model, images, captions -> scalar
MakeModel = Callable[[Any, Vocabulary, int], nn.Module]  # recipe, vocabulary, feature dimension -> captioner


class Ensemble(nn.Module):
    """Captioners that decode together, by the mean of their probabilities."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members: Any = nn.ModuleList(members)

    def forward(self, images: Tensor, captions: Int[Tensor, "caption length"]) -> Float[Tensor, "caption step word"]:
        log_probs = torch.stack([member(images, captions).float().log_softmax(-1) for member in self.members])
        return log_probs.logsumexp(0) - math.log(len(self.members))

    def start(self, images: Tensor) -> State:
        return join_states([member.start(images) for member in self.members])

    def step(self, images: Tensor) -> Step:
        return ensemble([member.step(images) for member in self.members])


def with_ensembles(make_model: MakeModel) -> MakeModel:
    """`make_model`, or an ensemble of its models for a recipe with an `ensemble_size` above 1."""

    def make(recipe: Any, vocabulary: Vocabulary, feature_dim: int) -> nn.Module:
        members = [make_model(recipe, vocabulary, feature_dim) for _ in range(recipe.ensemble_size)]
        return members[0] if len(members) == 1 else Ensemble(members)

    return make


def word_log_probs(
    scores: Float[Tensor, "caption step word"], captions: Int[Tensor, "caption length"]
) -> tuple[Float[Tensor, "caption step"], Bool[Tensor, "caption step"]]:
    """log p of each word after the first, and whether there is one; log p of padding is 0.

    The backward pass overwrites `scores` (see `target_log_probs`).
    """
    target = captions[:, 1:]
    present = target != PAD
    log_probs = target_log_probs(scores.flatten(0, 1), target.flatten())
    return log_probs.view_as(target) * present, present


def cross_entropy(scores: Float[Tensor, "caption step word"], captions: Int[Tensor, "caption length"]) -> Tensor:
    """The mean of -log p over the words of a batch, without padding. The backward pass overwrites `scores`."""
    log_probs, present = word_log_probs(scores, captions)
    return -log_probs.sum() / everywhere(present.sum())


def caption_images(
    model: Any, images: Float[Tensor, "image ... dim"], beam_size: int, n_best: int = 1, trace: Sequence[str] = ()
) -> Decoded:
    """The `n_best` captions of each image, of at most `LONGEST` words, without the unknown word.

    `trace` names entries of the decoding state to return beside the words.
    """
    begin = model.step(images), model.start(images), len(images), beam_size, LONGEST
    return beam_search(*begin, start=START, end=END, never=(UNKNOWN,), n_best=n_best, trace=trace)


def sample_images(
    model: Any, images: Float[Tensor, "image ... dim"], temperature: float, draws: int, seed: int,
    trace: Sequence[str] = (),
) -> Decoded:  # fmt: skip
    """As `caption_images`, but `draws` captions drawn from the probabilities to the power 1 / `temperature`."""
    begin = model.step(images), model.start(images), len(images), LONGEST
    settings: Any = {"start": START, "end": END, "never": (UNKNOWN,), "trace": trace}
    generator = torch.Generator().manual_seed(seed)
    return sample(*begin, generator=generator, temperature=temperature, draws=draws, **settings)


class CaptioningExperiment:
    """One preset with one seed. A batch is captions of the training split, each with its image.

    An ensemble decodes with trained models and has nothing to learn: its one epoch has no batches.
    """

    def __init__(
        self, recipe: CaptioningRecipe, inputs: Inputs, model: nn.Module, seed: int, device: torch.device,
        objective: Objective,
    ) -> None:  # fmt: skip
        self.recipe, self.inputs, self.seed, self.device, self.objective = recipe, inputs, seed, device, objective
        self.train = inputs.dataset.split("train")
        self.model = model.to(device)
        self.source = FeatureSource(inputs, recipe, device)

    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        if isinstance(self.model, Ensemble):
            return []
        lengths = np.array([len(caption) for caption in self.inputs.encoded("train")])
        return length_grouped(lengths, self.recipe.training.batch_size, self.seed, epoch)

    def loss(self, batch: np.ndarray, epoch: int) -> Tensor:
        images = self.source.training(self.train.images_of(batch))
        captions, _ = padded([self.inputs.encoded("train")[i] for i in batch])
        return self.objective(self.model, images, captions.to(self.device))

    def validate(self) -> Evaluation:
        """Likelihood, and the BLEU of greedy captions."""
        with self.precision():
            likelihood = self.likelihood(self.inputs.dataset.split("val"))
            scores = self.validation_bleu(beam_size=1)
        return Evaluation({**likelihood, **{f"bleu{n}": float(score) for n, score in enumerate(scores, 1)}}, {})

    def validation_bleu(self, beam_size: int) -> Float[np.ndarray, 4]:
        """BLEU-1 to BLEU-4 on the validation split, from the tokens of the data set."""
        split = self.inputs.dataset.split("val")
        written = self.sentences(self.write(split, beam_size)[:, 0])
        tokens = split.tokens
        references = [[" ".join(tokens[i]) for i in captions] for captions in captions_of_images(split)]
        return bleu(bleu_statistics(written, references).sum(0))

    def test(self, protocol: str) -> Evaluation:
        """Every caption metric, at every beam. Protocol "1K" is the first 1,000 images, any other the whole split."""
        split = scored(self.inputs.dataset.split("test"), protocol)
        with self.precision():
            return self.score(split, self.likelihood(split))

    def precision(self) -> AbstractContextManager[Any]:
        """The number format of training, for scoring too."""
        return bf16_where_native(self.device, self.recipe.training.precision)

    def likelihood(self, split: Split) -> dict[str, float]:
        """Per-word perplexity and its negative logarithm, and how often the likeliest next word is the right one."""

        def counts(chunk: np.ndarray) -> Float64[Tensor, 3]:
            images, captions = self.forced(split, chunk)
            scores = self.model(images, captions)
            log_probs, present = word_log_probs(scores, captions)
            right = present & (scores.argmax(-1) == captions[:, 1:])
            return torch.stack([log_probs.double().sum(), right.sum(), present.sum()])

        total, right, words = 0.0, 0, 0
        for of_chunk in mapped(counts, self.chunks(split)):
            total, right, words = total + float(of_chunk[0]), right + int(of_chunk[1]), words + int(of_chunk[2])
        mean = total / words
        perplexity = float(np.exp(np.float64(-mean).clip(max=709)))
        return {"log_likelihood": mean, "perplexity": perplexity, "word_accuracy": 100 * right / words}

    def teacher_forced(self, split: Split) -> Iterator[tuple[np.ndarray, Tensor, Int[Tensor, "caption length"]]]:
        """Chunks of captions of similar length: their numbers in the split, their images and their words."""
        for chunk in self.chunks(split):
            yield chunk, *self.forced(split, chunk)

    def chunks(self, split: Split) -> list[np.ndarray]:
        """The numbers of captions of similar length."""
        order = np.argsort([len(caption) for caption in self._encoded(split)], kind="stable")
        return np.split(order, range(CAPTIONS_AT_ONCE, len(order), CAPTIONS_AT_ONCE))

    def forced(self, split: Split, chunk: np.ndarray) -> tuple[Tensor, Int[Tensor, "caption length"]]:
        """The images and the words of some captions."""
        captions, _ = padded([self._encoded(split)[i] for i in chunk])
        return self.source.testing(split.images_of(chunk)), captions.to(self.device)

    def _encoded(self, split: Split) -> list[list[int]]:
        return self.inputs.encoded(split.name)[: len(split.caption_index)]

    def write(self, split: Split, beam_size: int, n_best: int = 1) -> Int[np.ndarray, "image n_best length"]:
        """The best captions of each image as word numbers, padded; some images are decoded at a time."""

        def words(images: np.ndarray) -> Int[Tensor, "image n_best length"]:
            return caption_images(self.model, self.source.testing(images), beam_size, n_best).words

        rows = split.image_index
        chunks = np.split(rows, range(IMAGES_AT_ONCE, len(rows), IMAGES_AT_ONCE))
        return np.concatenate([of_chunk.cpu().numpy() for of_chunk in mapped(words, chunks)])

    def score(self, split: Split, likelihood: dict[str, float]) -> Evaluation:
        """All caption metrics at the chosen beam, BLEU at the others, and how new and varied the captions are.

        All processes write captions; the main one alone scores them.
        """
        beam, chosen = self.chosen_beam()
        scorer = CaptionScorer.of(split)
        best = self.write(split, beam, n_best=min(beam, N_BEST))
        sentences = {beam: self.sentences(best[:, 0])}
        with ThreadPoolExecutor(1) as thread:  # METEOR is a process of its own: meanwhile the other beams are searched
            scored = thread.submit(scorer.score, sentences[beam]) if main() else None
            try:
                others = [size for size in self.widths if size != beam]
                sentences |= {size: self.sentences(self.write(split, size)[:, 0]) for size in others}
                scores = scored.result() if scored else None
            except BaseException:  # the thread would be waited for
                kill_all()
                raise
        if scores is None:
            return Evaluation({}, {})
        by_beam = scores_by_beam(scorer, dict(sorted(sentences.items())))
        variety = self.variety([self.sentences(of_image) for of_image in best])
        metrics = {**likelihood, **scores.metrics, **chosen.metrics, **by_beam.metrics, **variety.metrics}
        statistics = {f"{name}_statistics": values for name, values in scores.statistics.items()}
        arrays = {"captions": best, **scores.per_image, **by_beam.arrays, **statistics}
        outputs = Captions.of(split, tuple(sentences[beam]))
        notes = (*scores.notes, *chosen.notes, *by_beam.notes, *variety.notes)
        return Evaluation(metrics, arrays, notes, outputs)

    @property
    def widths(self) -> list[int]:
        """The widths of the beam that are tried, ascending."""
        return sorted({*BEAMS, self.recipe.beam_size})

    def chosen_beam(self) -> tuple[int, Evaluation]:
        """The width with the best BLEU-4 on validation, the narrower in a tie, and what a record says of the choice."""
        if not self.recipe.choose_beam:
            beam = self.recipe.beam_size
            return beam, Evaluation({"beam": float(beam)}, {}, (f"beam: {beam}, of the recipe",))
        bleu4 = {width: float(self.validation_bleu(width)[3]) for width in self.widths}
        beam = max(bleu4, key=lambda width: bleu4[width])
        metrics = {f"validation_bleu4_beam{width}": score for width, score in bleu4.items()}
        note = f"beam: {beam}, the best of {self.widths} by BLEU-4 on validation"
        return beam, Evaluation({"beam": float(beam), **metrics}, {}, (note,))

    def variety(self, n_best: list[list[str]]) -> Evaluation:
        """How new and varied the captions of each image are, best first."""
        best, tokenizer = [of_image[0] for of_image in n_best], self.inputs.dataset.tokenizer
        written = {"novelty": best, "novelty_n_best": list(chain.from_iterable(n_best))}
        new = novelties(written, self.inputs.dataset)
        metrics = {
            **new.metrics,
            "distinct2": distinct_n(best, 2, tokenizer),
            "vocabulary_used": float(vocabulary_used(best, tokenizer)),
        }
        varied = {"self_bleu": self_bleu(n_best, tokenizer)} if len(n_best[0]) > 1 else {}
        return Evaluation({**metrics, **varied}, {}, new.notes)

    def sentences(self, written: Int[np.ndarray, "caption length"]) -> list[str]:
        """Word numbers as text."""
        return [" ".join(self.inputs.vocabulary.decode(words)) for words in written.tolist()]


def scores_by_beam(scorer: CaptionScorer, sentences: dict[int, list[str]]) -> Evaluation:
    """BLEU of the sentences that beams of each width wrote, and its counts."""
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    try:
        tokens = iter(scorer.tokenize(list(chain.from_iterable(sentences.values()))))
    except CapbenchError as error:
        return Evaluation({}, {}, (f"bleu by the width of the beam: {error}",))
    for width, of_width in sentences.items():
        statistics = bleu_statistics([next(tokens) for _ in of_width], scorer.references)
        arrays[f"bleu_beam{width}"] = statistics
        metrics |= {f"bleu{n}_beam{width}": float(score) for n, score in enumerate(bleu(statistics.sum(0)), 1)}
    return Evaluation(metrics, arrays)


def captions_of_images(split: Split) -> list[list[int]]:
    """The captions of each image of a split, as numbers within the split."""
    captions_of: list[list[int]] = [[] for _ in split.image_index]
    for caption, image in enumerate(split.image_of_caption):
        captions_of[image].append(caption)
    return captions_of
