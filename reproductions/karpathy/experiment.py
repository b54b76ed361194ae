"""The alignment model on a data set: pairs in, margin loss out; ranks, and where words point, at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
from capbench.training.experiment import Evaluation, Inputs
from capbench.training.sources import FeatureSource
from reproductions.karpathy.alignment import AlignmentModel
from reproductions.karpathy.objective import structured_margin
from reproductions.karpathy.recipe import AlignmentRecipe

AT_ONCE = 250  # images, or captions, that are embedded together in evaluation
VECTORS = "CAPBENCH_WORD2VEC"
WHOLE = 0  # the region that is the whole image


class AlignmentExperiment:
    """One preset with one seed. A batch is captions of the training split, each with the regions of its image."""

    def __init__(self, recipe: AlignmentRecipe, inputs: Inputs, seed: int, device: torch.device) -> None:
        torch.manual_seed(seed)
        self.recipe, self.inputs, self.seed, self.device = recipe, inputs, seed, device
        self.train = inputs.dataset.split("train")
        self.source = FeatureSource(inputs, recipe, device)
        self.model = AlignmentModel(recipe, len(inputs.vocabulary), inputs.features.array.shape[-1]).to(device)
        self.notes: tuple[str, ...] = ()
        if recipe.word_vectors == "file":
            vectors, source = word_vectors(inputs.vocabulary, recipe.word_dim, file_of(VECTORS, recipe.word_dim))
            self.model.W_w.weight.data.copy_(vectors)
            self.notes = (source,)

    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        """Captions of all lengths together: a score is a sum over words, and long captions must not win by length."""
        return shuffled(len(self.train.image_of_caption), self.recipe.training.batch_size, self.seed, epoch)

    def loss(self, batch: np.ndarray, epoch: int) -> Tensor:
        images = self.train.image_of_caption[batch]
        regions = self.source.training(self.train.image_index[images])
        similarity = self.model(regions, *self._words("train", batch))
        return structured_margin(similarity, torch.from_numpy(images).to(self.device), self.recipe.margin)

    def evaluate(self, split: str, protocol: str) -> Evaluation:
        """Recalls both ways; where the true boxes of phrases are known, how often words point at them."""
        part = self.inputs.dataset.split(split)
        chunks = np.split(part.image_index, range(AT_ONCE, len(part.image_index), AT_ONCE))
        v = torch.cat([self.model.embed_regions(self.source.testing(rows)).float() for rows in chunks])
        encoded = self.inputs.encoded(split)

        def similarity(images: Tensor, captions: Tensor) -> Tensor:
            regions, numbers = v[images[:, 0].long()], captions[:, 0].long().cpu().numpy()
            first, which = distinct([encoded[i] for i in numbers])
            chunks = np.split(numbers[first], range(AT_ONCE, len(first), AT_ONCE))
            parts = (maxsim(regions, *self._embedded(split, some), self.recipe.form) for some in chunks)
            return torch.cat(list(parts), 1)[:, which]

        owner = torch.from_numpy(part.image_of_caption).to(self.device)
        images, captions = (torch.arange(count, device=v.device)[:, None].double() for count in (len(v), len(owner)))
        metrics, ranks = evaluate_protocol(images, captions, owner, protocol, similarity, len(v))  # by their numbers
        arrays = {name: getattr(ranks, name).cpu().numpy() for name in ("image_to_caption", "caption_to_image")}
        arrays["image_of_caption"] = part.image_of_caption
        if part.dataset.phrases is None:
            return Evaluation(metrics, arrays, self.notes)
        found = self._pointing(part, v)
        return Evaluation({**metrics, **found.metrics}, {**arrays, **found.arrays}, self.notes)

    def word_scores(
        self, part: Split, v: Float[Tensor, "image region dim"] | None = None
    ) -> Iterator[tuple[np.ndarray, Float[Tensor, "caption length region"], Int[Tensor, " caption"]]]:
        """Chunks of the captions of a split: their numbers, v_i . s_t for the regions of their own image, lengths.

        `v` are the regions of the split's images where they are embedded already.
        """
        for numbers in np.split(order := np.arange(len(part.image_of_caption)), range(AT_ONCE, len(order), AT_ONCE)):
            own = part.image_of_caption[numbers]
            if v is None:
                regions = self.model.embed_regions(self.source.testing(part.image_index[own])).float()
            else:
                regions = v[torch.from_numpy(own).to(self.device)]
            words, lengths = self._embedded(part.name, numbers)
            yield numbers, words @ regions.mT, lengths

    def _pointing(self, part: Split, v: Float[Tensor, "image region dim"]) -> Evaluation:
        """The pointing game over phrases, and the F1 of snippets for each affinity."""
        dataset, boxes = part.dataset, self.inputs.features.boxes
        if dataset.phrases is None or boxes is None:
            raise CapbenchError(f"{dataset.name} has no true boxes to point at")
        pixels = boxes.pixels(dataset, part.image_index)
        weights, inside, half, owner = [], [], [], []
        counts = {beta: np.zeros(3, np.int64) for beta in BETAS}
        for numbers, scores, lengths in self.word_scores(part, v):
            labels = {beta: viterbi_decode(scores, lengths, beta)[0].cpu().numpy() for beta in BETAS}
            own_scores, own_lengths = scores.cpu().numpy(), lengths.tolist()
            for row, caption in enumerate(numbers):
                image, phrases = part.image_of_caption[caption], dataset.phrases[part.caption_index[caption]]
                for phrase in phrases:
                    weights.append(own_scores[row, phrase.start : phrase.end].mean(0))
                    inside.append(hits(pixels[image], phrase.boxes))
                    half.append(overlaps(pixels[image], phrase.boxes))
                    owner.append(image)
                for beta, found in labels.items():
                    counts[beta] += snippet_counts(found[row, : own_lengths[row]], pixels[image], phrases)
        hit, chance = pointing(np.array(weights), np.array(inside))
        overlap, overlap_chance = pointing(np.array(weights), np.array(half))
        arrays = {"pointing": hit, "pointing_chance": chance, "overlap": overlap, "overlap_chance": overlap_chance}
        metrics = {name: float(values.mean()) for name, values in arrays.items()}
        metrics["pointing_whole"] = 100 * float(np.mean([of_phrase[WHOLE] for of_phrase in inside]))
        metrics |= {f"snippet_f1_beta{beta:g}": f1(count) for beta, count in counts.items()}
        return Evaluation(metrics, {**arrays, "image_of_phrase": np.array(owner)})

    def _words(self, split: str, captions: np.ndarray) -> tuple[Int[Tensor, "caption length"], Int[Tensor, " caption"]]:
        """The words of captions, without START and END; a caption without a word has one that does not count."""
        words = [self.inputs.encoded(split)[i][1:-1] for i in captions]
        ids, _ = padded([own or [PAD] for own in words])
        return ids.to(self.device), torch.tensor([len(own) for own in words])

    def _embedded(
        self, split: str, captions: np.ndarray
    ) -> tuple[Float[Tensor, "caption length dim"], Int[Tensor, " caption"]]:
        ids, lengths = self._words(split, captions)
        return self.model.embed_words(ids, lengths).float(), lengths.to(self.device)
