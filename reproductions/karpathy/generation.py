"""The generator on a data set: on whole images and their captions, or on regions and their inferred snippets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from capbench.captioners.experiment import CAPTIONS_AT_ONCE, CaptioningExperiment, caption_images
from capbench.data.batches import length_grouped, padded, shuffled
from capbench.data.captions import Split
from capbench.metrics.captioning import bleu, bleu_statistics
from capbench.training.experiment import Evaluation, Inputs
from capbench.training.processes import mapped
from capbench.vision.regions import Boxes

from .alignment import AlignmentModel
from .experiment import WHOLE, AlignmentExperiment
from .generator import MultimodalRNN
from .objective import cost_per_sentence, cost_per_word
from .recipe import AlignmentRecipe, GeneratorRecipe, presets
from .snippets import Snippet, snippets


class GeneratorExperiment(CaptioningExperiment):
    """One preset with one seed: whole images and their captions."""

    def __init__(
        self, recipe: GeneratorRecipe, inputs: Inputs, model: MultimodalRNN, seed: int, device: torch.device
    ) -> None:
        self.regions = inputs.features
        features = replace(inputs.features, array=inputs.features.array[:, WHOLE])
        whole = replace(inputs, features=features, skips_unknown=recipe.unknown_words == "skip")
        self.cost_per = recipe.cost_per
        cost = {"word": cost_per_word, "sentence": cost_per_sentence}[recipe.cost_per]
        super().__init__(recipe, whole, model, seed, device, cost)
        if not recipe.continues:
            model.expect(self.word_counts())

    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        """Captions of nearly one length; of all lengths where the cost is per sentence and longer ones weigh more."""
        if self.cost_per == "word":
            return super().batches(epoch)
        return shuffled(len(self.train.image_of_caption), self.recipe.training.batch_size, self.seed, epoch)

    def word_counts(self) -> Int[Tensor, " word"]:
        """How often each word is to be written in the training captions."""
        return self._counted(self.inputs.encoded("train"))

    def score(self, split: Split, likelihood: dict[str, float]) -> Evaluation:
        whole, on_regions = super().score(split, likelihood), self.on_regions(split)
        metrics, arrays = {**whole.metrics, **on_regions.metrics}, {**whole.arrays, **on_regions.arrays}
        return replace(whole, metrics=metrics, arrays=arrays)

    def on_regions(self, split: Split) -> Evaluation:
        """BLEU of what is written about the true box of each thing, against the phrases of captions that name it.

        Empty unless the regions are the true boxes.
        """
        boxes = self.regions.boxes
        if boxes is None or boxes.provider != "objects":
            return Evaluation({}, {})
        phrases = dict(_phrases_of_boxes(split, boxes))
        rows, places = np.array(list(phrases)).T
        features = torch.from_numpy(self.regions.array[split.image_index[rows], places]).to(self.device)
        words = mapped(
            lambda chunk: caption_images(self.model, chunk, self.recipe.beam_size).words, features.split(100)
        )
        written = self.sentences(torch.cat(words)[:, 0].cpu().numpy())
        statistics = np.zeros((len(split.image_index), 10), np.int64)  # by image, which is drawn with all its boxes
        np.add.at(statistics, rows, bleu_statistics(written, list(phrases.values())))
        metrics = {f"region_bleu{n}": float(score) for n, score in enumerate(bleu(statistics.sum(0)), 1)}
        return Evaluation(metrics, {"region_bleu_statistics": statistics})

    def _counted(self, captions: Sequence[Sequence[int]]) -> Int[Tensor, " word"]:
        words = torch.tensor([word for caption in captions for word in caption[1:]])
        return words.bincount(minlength=len(self.inputs.vocabulary))


class RegionGeneratorExperiment(GeneratorExperiment):
    """One preset with one seed: regions and the snippets that a trained alignment gives them. A batch is snippets.

    Captions of whole images are not what this model writes, and are not scored.
    """

    def __init__(
        self, recipe: GeneratorRecipe, inputs: Inputs, model: MultimodalRNN, seed: int, device: torch.device
    ) -> None:
        aligning = presets(inputs.dataset.name)[str(recipe.init_from)]
        assert isinstance(aligning, AlignmentRecipe)
        aligner = AlignmentModel(aligning, len(inputs.vocabulary), inputs.features.array.shape[-1])
        aligner.load_state_dict(inputs.init[0])
        alignment = AlignmentExperiment(aligning, inputs, aligner, seed, device)
        splits = [inputs.dataset.split(name) for name in inputs.dataset.splits]
        self.snippets: Mapping[str, list[Snippet]] = {
            split.name: list(snippets(alignment, split, aligning.beta)) for split in splits
        }
        super().__init__(recipe, inputs, model, seed, device)

    def word_counts(self) -> Int[Tensor, " word"]:
        return self._counted([snippet.words for snippet in self.snippets["train"]])

    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        lengths = np.array([len(snippet.words) for snippet in self.snippets["train"]])
        return length_grouped(lengths, self.recipe.training.batch_size, self.seed, epoch)

    def loss(self, batch: np.ndarray, epoch: int) -> Tensor:
        return self.objective(self.model, *self._pairs([self.snippets["train"][i] for i in batch]))

    def chunks(self, split: Split) -> list[np.ndarray]:
        """The numbers of snippets of similar length."""
        order = np.argsort([len(snippet.words) for snippet in self.snippets[split.name]], kind="stable")
        return np.split(order, range(CAPTIONS_AT_ONCE, len(order), CAPTIONS_AT_ONCE))

    def forced(self, split: Split, chunk: np.ndarray) -> tuple[Tensor, Int[Tensor, "caption length"]]:
        """The regions and the words of some snippets."""
        return self._pairs([self.snippets[split.name][i] for i in chunk])

    def validate(self) -> Evaluation:
        """The likelihood of the snippets."""
        with self.precision():
            return Evaluation(self.likelihood(self.inputs.dataset.split("val")), {})

    def score(self, split: Split, likelihood: dict[str, float]) -> Evaluation:
        """The likelihood of the snippets, and what is written about true boxes."""
        on_regions, learnt = self.on_regions(split), self.snippets["train"]
        words = np.mean([len(snippet.words) - 2 for snippet in learnt])
        note = f"learnt from {len(learnt):,} snippets of {words:.1f} words on average"
        return Evaluation({**likelihood, **on_regions.metrics}, on_regions.arrays, (note,))

    def _pairs(self, chosen: Sequence[Snippet]) -> tuple[Tensor, Int[Tensor, "caption length"]]:
        rows, regions, words = zip(*chosen, strict=True)
        features = self.regions.array[np.array(rows), np.array(regions)]
        return torch.from_numpy(features).to(self.device), padded(words)[0].to(self.device)


def _phrases_of_boxes(split: Split, boxes: Boxes) -> Iterator[tuple[tuple[int, int], list[str]]]:
    """(image of the split, region) of each true box, and the phrases that name the thing in it alone."""
    dataset = split.dataset
    assert dataset.phrases is not None
    phrases: dict[tuple[int, tuple[float, ...]], list[str]] = {}
    for caption, image in zip(split.caption_index, split.image_of_caption, strict=True):
        for phrase in dataset.phrases[caption]:
            if len(phrase.boxes) == 1:
                words = " ".join(dataset.tokens[caption][phrase.start : phrase.end])
                phrases.setdefault((int(image), phrase.boxes[0]), []).append(words)
    pixels = boxes.pixels(dataset, split.image_index).round(3)
    for image, row in enumerate(split.image_index):
        for region in range(1, boxes.count[row]):
            box = tuple(pixels[image, region].tolist())
            if (image, box) in phrases:
                yield (image, region), phrases[image, box]
