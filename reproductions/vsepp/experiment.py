"""VSE++ on a data set: batches in, loss out, retrieval scores at the end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from capbench.data.batches import distinct, length_grouped, padded, shuffled
from capbench.data.captions import Split
from capbench.kernels.ranking_loss.reference import widened
from capbench.metrics.retrieval import evaluate_protocol, scored
from capbench.scoring.outputs import Embeddings
from capbench.training.experiment import Evaluation, Inputs
from capbench.training.processes import mapped
from capbench.training.shares import gathered, share
from capbench.training.sources import FeatureSource

from .model import VSE
from .objective import objective
from .recipe import VSERecipe

CAPTIONS = 5  # of an image, the first: COCO has up to seven, and the released lists (data.py, get_paths) five
VALIDATED = 1000  # images, the first, that choose the snapshot: the released code cuts longer development sets to them
CHUNK = 512  # captions or images embedded at a time in evaluation


class VSEExperiment:
    """One preset with one seed. A batch is captions of the training split, each with its image."""

    def __init__(self, recipe: VSERecipe, inputs: Inputs, model: VSE, seed: int, device: torch.device) -> None:
        self.recipe, self.inputs, self.model, self.seed, self.device = recipe, inputs, model, seed, device
        self.train = inputs.dataset.split("train")
        if recipe.input == "standardised_roots" and not recipe.continues:
            model.standardise(torch.from_numpy(inputs.features.array[self.train.image_index]))
        self.source = FeatureSource(inputs, recipe, device)
        if recipe.finetune:
            model.encoder = self.source.encoder.trainable()
        model.to(device)

    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        captions, size = self.train.first_captions(CAPTIONS), self.recipe.training.batch_size
        if self.recipe.batches == "random":
            batches = shuffled(len(captions), size, self.seed, epoch)
        else:
            encoded = self.inputs.encoded("train")
            batches = length_grouped(np.array([len(encoded[i]) for i in captions]), size, self.seed, epoch)
        return [captions[batch] for batch in batches]

    def loss(self, batch: np.ndarray, epoch: int) -> Tensor:
        images = self.model.embed_images(self.source.training(self.train.images_of(batch)))
        captions = self._embed_captions([self.inputs.encoded("train")[i] for i in batch])
        image_ids = torch.from_numpy(self.train.image_of_caption[batch]).to(self.device)
        batch_of_all = gathered(widened(images)), gathered(widened(captions)), gathered(image_ids)
        return share(objective(self.recipe, *batch_of_all, epoch))

    def validate(self) -> Evaluation:
        return self._ranked(self._validated, "whole")

    def test(self, protocol: str) -> Evaluation:
        return self._ranked(self.inputs.dataset.split("test"), protocol)

    @property
    def _validated(self) -> Split:
        split = self.inputs.dataset.split("val")
        return split.first(min(VALIDATED, len(split.image_index)))

    def _ranked(self, split: Split, protocol: str) -> Evaluation:
        kept = split.first_captions(CAPTIONS)
        encoded = [self.inputs.encoded(split.name)[i] for i in kept]
        rows, image_of_caption = split.image_index, split.image_of_caption[kept]
        images = mapped(
            lambda i: self.model.embed_images(self.source.testing(rows[i : i + CHUNK])), range(0, len(rows), CHUNK)
        )
        first, which = distinct(encoded)
        chunks = np.split(first, range(CHUNK, len(first), CHUNK))
        captions = torch.cat(mapped(lambda chunk: self._embed_captions([encoded[i] for i in chunk]), chunks))[which]
        image_ids = torch.from_numpy(image_of_caption).to(self.device)
        embedded = torch.cat(images)
        metrics, ranks = evaluate_protocol(embedded, captions, image_ids, protocol, self.recipe.similarity)
        arrays = {
            "image_to_caption": ranks.image_to_caption.cpu().numpy(),
            "caption_to_image": ranks.caption_to_image.cpu().numpy(),
            "image_of_caption": image_of_caption,
        }
        outputs = Embeddings.of(split, kept, embedded, captions)
        return Evaluation(metrics, arrays, self._notes(scored(split, protocol)), outputs)

    def _notes(self, split: Split) -> tuple[str, ...]:
        """What of the splits is left out, as the released code does; nothing on Flickr8K."""
        kept, of = len(split.first_captions(CAPTIONS)), len(split.caption_index)
        chosen, validation = len(self._validated.image_index), len(self.inputs.dataset.split("val").image_index)
        captions = f"scored: the first {CAPTIONS} captions of each image, {kept:,} of {of:,}"
        images = f"the snapshot is chosen on the first {chosen:,} of {validation:,} validation images"
        return (captions,) * (kept < of) + (images,) * (chosen < validation)

    def _embed_captions(self, captions: list[list[int]]) -> Float[Tensor, "caption dim"]:
        ids, lengths = padded(captions)
        return self.model.embed_captions(ids.to(self.device), lengths)
