"""The generator on a data set: on whole images and their captions, or on regions and the snippets inferred for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from capbench.captioners.experiment import CAPTIONS_AT_ONCE, CaptioningExperiment, caption_images
from capbench.data.batches import length_grouped, padded
from capbench.data.captions import Split
from capbench.data.vocabulary import Vocabulary
from capbench.metrics.captioning import bleu, bleu_statistics
from capbench.training.experiment import Evaluation, Inputs
from capbench.training.machine import bf16_where_native
from capbench.vision.regions import Boxes
from reproductions.karpathy.experiment import WHOLE, AlignmentExperiment
from reproductions.karpathy.generator import MultimodalRNN
from reproductions.karpathy.objective import negative_log_likelihood
from reproductions.karpathy.recipe import AlignmentRecipe, GeneratorRecipe, presets
from reproductions.karpathy.snippets import Snippet, snippets


class GeneratorExperiment(CaptioningExperiment):
    """One preset with one seed: whole images and their captions."""

    def __init__(self, recipe: GeneratorRecipe, inputs: Inputs, seed: int, device: torch.device) -> None:
        self.regions = inputs.features
        whole = replace(inputs, features=replace(inputs.features, array=inputs.features.array[:, WHOLE]))
        super().__init__(recipe, whole, seed, device, _make_model, negative_log_likelihood)
        cast(MultimodalRNN, self.model).expect(self.word_counts())

    def word_counts(self) -> Int[Tensor, " word"]:
        """How often each word is to be written in the training captions."""
        return self._counted(self.inputs.encoded("train"))

    def test(self, part: Split, likelihood: dict[str, float]) -> Evaluation:
        found, on_regions = super().test(part, likelihood), self.on_regions(part)
        return Evaluation(
            {**found.metrics, **on_regions.metrics}, {**found.arrays, **on_regions.arrays}, (*found.notes, *self.notes)
        )

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def on_regions(self, part: Split) -> Evaluation:
        """BLEU of what is written about the true box of each thing, against the phrases of the captions that name it.

        Only where the regions are the true boxes; elsewhere nothing.
        """
        boxes = self.regions.boxes
        if boxes is None or boxes.provider != "objects":
            return Evaluation({}, {})
        named = dict(_named_things(part, boxes))
        rows, places = np.array(list(named)).T
        features = torch.from_numpy(self.regions.array[part.image_index[rows], places]).to(self.device)
        found = [caption_images(self.model, some, self.recipe.beam_size).words[:, 0] for some in features.split(100)]
        written = self.sentences(np.concatenate([words.cpu().numpy() for words in found]))
        statistics = bleu_statistics(written, list(named.values()))
        metrics = {f"region_bleu{n}": float(score) for n, score in enumerate(bleu(statistics.sum(0)), 1)}
        return Evaluation(metrics, {"region_bleu_statistics": statistics})

    def _counted(self, captions: Sequence[Sequence[int]]) -> Int[Tensor, " word"]:
        words = torch.tensor([word for caption in captions for word in caption[1:]])
        return words.bincount(minlength=len(self.inputs.vocabulary))


class RegionGeneratorExperiment(GeneratorExperiment):
    """One preset with one seed: regions and the snippets that a trained alignment gives them. A batch is snippets."""

    def __init__(self, recipe: GeneratorRecipe, inputs: Inputs, seed: int, device: torch.device) -> None:
        aligning = presets(inputs.dataset.name)[str(recipe.init_from)]
        assert isinstance(aligning, AlignmentRecipe)
        alignment = AlignmentExperiment(aligning, inputs, seed, device)
        alignment.model.load_state_dict(inputs.init[0])
        parts = [inputs.dataset.split(name) for name in inputs.dataset.splits]
        self.snippets: Mapping[str, list[Snippet]] = {
            part.name: list(snippets(alignment, part, aligning.beta)) for part in parts
        }
        super().__init__(recipe, inputs, seed, device)

    def word_counts(self) -> Int[Tensor, " word"]:
        return self._counted([snippet.words for snippet in self.snippets["train"]])

    @property
    def notes(self) -> tuple[str, ...]:
        own = self.snippets["train"]
        words = np.mean([len(snippet.words) - 2 for snippet in own])
        return (f"learnt from {len(own):,} snippets of {words:.1f} words on average",)

    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        lengths = np.array([len(snippet.words) for snippet in self.snippets["train"]])
        return length_grouped(lengths, self.recipe.training.batch_size, self.seed, epoch)

    def loss(self, batch: np.ndarray, epoch: int) -> Tensor:
        return self.objective(self.model, *self._pairs([self.snippets["train"][i] for i in batch]))

    def teacher_forced(self, part: Split) -> Iterator[tuple[np.ndarray, Tensor, Int[Tensor, "caption length"]]]:
        own = sorted(self.snippets[part.name], key=lambda snippet: len(snippet.words))
        for start in range(0, len(own), CAPTIONS_AT_ONCE):
            chunk = own[start : start + CAPTIONS_AT_ONCE]
            yield np.arange(start, start + len(chunk)), *self._pairs(chunk)

    def evaluate(self, split: str, protocol: str) -> Evaluation:
        """The likelihood of the snippets; on the test split, also what is written about true boxes.

        Captions of whole images are not what this model writes.
        """
        part = self.inputs.dataset.split(split)
        with bf16_where_native(self.device, self.recipe.training.precision):
            likelihood = self.likelihood(part)
            if split == "val":
                return Evaluation(likelihood, {})
            found = self.on_regions(part)
        return Evaluation({**likelihood, **found.metrics}, found.arrays, (*found.notes, *self.notes))

    def _pairs(self, chosen: Sequence[Snippet]) -> tuple[Tensor, Int[Tensor, "caption length"]]:
        rows, regions, words = zip(*chosen, strict=True)
        features = self.regions.array[np.array(rows), np.array(regions)]
        return torch.from_numpy(features).to(self.device), padded(words)[0].to(self.device)


def _make_model(recipe: GeneratorRecipe, vocabulary: Vocabulary, feature_dim: int) -> MultimodalRNN:
    return MultimodalRNN(recipe, len(vocabulary), feature_dim)


def _named_things(part: Split, boxes: Boxes) -> Iterator[tuple[tuple[int, int], list[str]]]:
    """(image of the split, region) of each true box, and the phrases that name the thing in it alone."""
    dataset = part.dataset
    assert dataset.phrases is not None
    phrases: dict[tuple[int, tuple[float, ...]], list[str]] = {}
    for caption, image in zip(part.caption_index, part.image_of_caption, strict=True):
        for phrase in dataset.phrases[caption]:
            if len(phrase.boxes) == 1:
                words = " ".join(dataset.tokens[caption][phrase.start : phrase.end])
                phrases.setdefault((int(image), phrase.boxes[0]), []).append(words)
    pixels = boxes.pixels(dataset, part.image_index).round(3)
    for image, row in enumerate(part.image_index):
        for region in range(1, boxes.count[row]):
            box = tuple(pixels[image, region].tolist())
            if (image, box) in phrases:
                yield (image, region), phrases[image, box]
