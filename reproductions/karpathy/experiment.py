"""The alignment model on a data set: pairs in, margin loss out; at the end ranks, and where words point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.data.batches import distinct, padded, shuffled
from capbench.data.captions import Split
from capbench.data.vocabulary import PAD
from capbench.data.word_vectors import file_of, word_vectors
from capbench.kernels.chain import viterbi_decode
from capbench.kernels.maxsim import maxsim
from capbench.metrics.alignment import BETAS, f1, hits, overlaps, pointing, snippet_counts
from capbench.metrics.retrieval import evaluate_protocol
from capbench.scoring.outputs import Similarity
from capbench.training.experiment import Evaluation, Inputs
from capbench.training.processes import mapped
from capbench.training.shares import gathered, share
from capbench.training.sources import FeatureSource

from .alignment import AlignmentModel
from .objective import structured_margin
from .recipe import VECTORS, AlignmentRecipe

AT_ONCE = 250  # images, or captions, that are embedded together in evaluation
KEPT = 50_000_000  # similarities that a run leaves at most: 200 MB
WHOLE = 0  # the region that is the whole image


class AlignmentExperiment:
    """One preset with one seed. A batch is captions of the training split, each with the regions of its image."""

    def __init__(
        self, recipe: AlignmentRecipe, inputs: Inputs, model: AlignmentModel, seed: int, device: torch.device
    ) -> None:
        self.recipe, self.inputs, self.seed, self.device = recipe, inputs, seed, device
        self.train = inputs.dataset.split("train")
        self.source = FeatureSource(inputs, recipe, device)
        self.model = model.to(device)
        self.notes: tuple[str, ...] = ()
        if recipe.word_vectors == "file":
            dimension = self.model.W_w.embedding_dim
            vectors, source = word_vectors(inputs.vocabulary, dimension, file_of(*VECTORS))
            self.model.W_w.weight.data.copy_(vectors)
            self.notes = (source,)

    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        """Captions of all lengths together: a score is a sum over words, and long captions must not win by length."""
        return shuffled(len(self.train.image_of_caption), self.recipe.training.batch_size, self.seed, epoch)

    def loss(self, batch: np.ndarray, epoch: int) -> Tensor:
        regions = self.source.training(self.train.images_of(batch))
        similarity = self.model(regions, *self._words("train", batch))
        image_ids = torch.from_numpy(self.train.image_of_caption[batch]).to(self.device)
        return share(structured_margin(similarity, gathered(image_ids), self.recipe.margin))

    def validate(self) -> Evaluation:
        return self._scored("val", "whole")

    def test(self, protocol: str) -> Evaluation:
        return self._scored("test", protocol)

    def word_scores(
        self, split: Split, v: Float[Tensor, "image region dim"] | None = None
    ) -> Iterator[tuple[np.ndarray, Float[Tensor, "caption length region"], Int[Tensor, " caption"]]]:
        """Chunks of the captions of a split: their numbers, v_i . s_t for the regions of their own image, lengths.

        `v` are the regions of the split's images, if they are embedded already.
        """
        for numbers in np.split(order := np.arange(len(split.image_of_caption)), range(AT_ONCE, len(order), AT_ONCE)):
            if v is None:
                regions = self.model.embed_regions(self.source.testing(split.images_of(numbers))).float()
            else:
                regions = v[torch.from_numpy(split.image_of_caption[numbers]).to(self.device)]
            words, lengths = self._embedded(split.name, numbers)
            yield numbers, words @ regions.mT, lengths

    def _scored(self, name: str, protocol: str) -> Evaluation:
        """Recalls both ways; where the true boxes of phrases are known, also how often words point at them."""
        split = self.inputs.dataset.split(name)
        chunks = np.split(split.image_index, range(AT_ONCE, len(split.image_index), AT_ONCE))
        v = torch.cat(mapped(lambda rows: self.model.embed_regions(self.source.testing(rows)).float(), chunks))
        encoded = self.inputs.encoded(name)
        kept = self._matrix(split, protocol)

        def similarity(images: Tensor, captions: Tensor) -> Tensor:
            regions, numbers = v[images[:, 0].long()], captions[:, 0].long().cpu().numpy()
            first, which = distinct([encoded[i] for i in numbers])
            chunks = np.split(numbers[first], range(AT_ONCE, len(first), AT_ONCE))
            scores = mapped(lambda chunk: maxsim(regions, *self._embedded(name, chunk), self.recipe.form), chunks)
            tile = torch.cat(scores, 1)[:, which]
            if kept is not None:
                kept[images.long().cpu(), torch.from_numpy(numbers)] = tile.cpu()
            return tile

        image_ids = torch.from_numpy(split.image_of_caption).to(self.device)
        # images and captions are ranked by their numbers, which `similarity` turns into scores
        images, captions = (torch.arange(n, device=v.device)[:, None].double() for n in (len(v), len(image_ids)))
        metrics, ranks = evaluate_protocol(images, captions, image_ids, protocol, similarity, len(v))
        arrays = {name: getattr(ranks, name).cpu().numpy() for name in ("image_to_caption", "caption_to_image")}
        arrays["image_of_caption"] = split.image_of_caption
        outputs = None if kept is None else Similarity.of(split, np.arange(len(image_ids)), kept)
        scores = Evaluation(metrics, arrays, self.notes, outputs)
        if split.dataset.phrases is None:
            return scores
        game = self._pointing(split, v)
        return replace(scores, metrics={**metrics, **game.metrics}, arrays={**arrays, **game.arrays})

    def _matrix(self, split: Split, protocol: str) -> Float[Tensor, "image caption"] | None:
        """Room for the similarities of a test split; None where they are too many, or not all are computed."""
        images, captions = len(split.image_index), len(split.image_of_caption)
        if split.name != "test" or protocol not in ("whole", "5K") or images * captions > KEPT:
            return None
        return torch.empty(images, captions)

    def _pointing(self, split: Split, v: Float[Tensor, "image region dim"]) -> Evaluation:
        """The pointing game over phrases, and the F1 of snippets for each affinity."""
        dataset, boxes = split.dataset, self.inputs.features.boxes
        if dataset.phrases is None or boxes is None:
            raise CapbenchError(f"{dataset.name} has no true boxes to point at")
        pixels = boxes.pixels(dataset, split.image_index)
        weights, inside, half, image_of_phrase = [], [], [], []
        counts = {beta: np.zeros(3, np.int64) for beta in BETAS}
        for numbers, scores, lengths in self.word_scores(split, v):
            labels = {beta: viterbi_decode(scores, lengths, beta)[0].cpu().numpy() for beta in BETAS}
            word_scores, words = scores.cpu().numpy(), lengths.tolist()
            for row, caption in enumerate(numbers):
                image, phrases = split.image_of_caption[caption], dataset.phrases[split.caption_index[caption]]
                for phrase in phrases:
                    weights.append(word_scores[row, phrase.start : phrase.end].mean(0))
                    inside.append(hits(pixels[image], phrase.boxes))
                    half.append(overlaps(pixels[image], phrase.boxes))
                    image_of_phrase.append(image)
                for beta, of_beta in labels.items():
                    counts[beta] += snippet_counts(of_beta[row, : words[row]], pixels[image], phrases)
        hit, chance = pointing(np.array(weights), np.array(inside))
        overlap, overlap_chance = pointing(np.array(weights), np.array(half))
        arrays = {"pointing": hit, "pointing_chance": chance, "overlap": overlap, "overlap_chance": overlap_chance}
        metrics = {name: float(values.mean()) for name, values in arrays.items()}
        metrics["pointing_whole"] = 100 * float(np.mean([of_phrase[WHOLE] for of_phrase in inside]))
        metrics |= {f"snippet_f1_beta{beta:g}": f1(count) for beta, count in counts.items()}
        return Evaluation(metrics, {**arrays, "image_of_phrase": np.array(image_of_phrase)})

    def _words(self, split: str, captions: np.ndarray) -> tuple[Int[Tensor, "caption length"], Int[Tensor, " caption"]]:
        """The words of captions, without START and END; a caption without a word is padded to length one."""
        words = [self.inputs.encoded(split)[i][1:-1] for i in captions]
        ids, _ = padded([of_caption or [PAD] for of_caption in words])
        return ids.to(self.device), torch.tensor([len(of_caption) for of_caption in words])

    def _embedded(
        self, split: str, captions: np.ndarray
    ) -> tuple[Float[Tensor, "caption length dim"], Int[Tensor, " caption"]]:
        ids, lengths = self._words(split, captions)
        return self.model.embed_words(ids, lengths).float(), lengths.to(self.device)
