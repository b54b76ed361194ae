"""VSE++ on a data set: batches in, loss out, retrieval scores at the end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from capbench.data.batches import distinct, length_grouped, padded, shuffled
from capbench.metrics.retrieval import evaluate_protocol
from capbench.training.experiment import Evaluation, Inputs
from capbench.training.sources import FeatureSource
from reproductions.vsepp.model import VSE
from reproductions.vsepp.objective import objective
from reproductions.vsepp.recipe import VSERecipe

CHUNK = 512  # captions or images embedded at a time in evaluation


class VSEExperiment:
    """One preset with one seed. A batch is captions of the training split, each with its image."""

    def __init__(self, recipe: VSERecipe, inputs: Inputs, model: VSE, seed: int, device: torch.device) -> None:
        self.recipe, self.inputs, self.model, self.seed, self.device = recipe, inputs, model, seed, device
        self.train = inputs.dataset.split("train")
        if recipe.input == "standardised_roots":
            model.standardise(torch.from_numpy(inputs.features.array[self.train.image_index]))
        self.source = FeatureSource(inputs, recipe, device)
        for snapshot in inputs.init:
            model.load_state_dict(snapshot)
        if recipe.finetune:
            model.encoder = self.source.encoder.trainable()
        model.to(device)

    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        lengths = np.array([len(caption) for caption in self.inputs.encoded("train")])
        size = self.recipe.training.batch_size
        if self.recipe.batches == "random":
            return shuffled(len(lengths), size, self.seed, epoch)
        return length_grouped(lengths, size, self.seed, epoch)

    def loss(self, batch: np.ndarray, epoch: int) -> Tensor:
        images = self.model.embed_images(self.source.training(self.train.images_of(batch)))
        captions = self._embed_captions([self.inputs.encoded("train")[i] for i in batch])
        image_ids = torch.from_numpy(self.train.image_of_caption[batch]).to(self.device)
        return objective(self.recipe, images.float(), captions.float(), image_ids, epoch)

    def validate(self) -> Evaluation:
        return self._ranked("val", "whole")

    def test(self, protocol: str) -> Evaluation:
        return self._ranked("test", protocol)

    def _ranked(self, name: str, protocol: str) -> Evaluation:
        split = self.inputs.dataset.split(name)
        encoded = self.inputs.encoded(name)
        rows = split.image_index
        images = [self.model.embed_images(self.source.testing(rows[i : i + CHUNK])) for i in range(0, len(rows), CHUNK)]
        first, which = distinct(encoded)
        chunks = np.split(first, range(CHUNK, len(first), CHUNK))
        captions = torch.cat([self._embed_captions([encoded[i] for i in chunk]) for chunk in chunks])[which]
        image_ids = torch.from_numpy(split.image_of_caption).to(self.device)
        metrics, ranks = evaluate_protocol(torch.cat(images), captions, image_ids, protocol, self.recipe.similarity)
        arrays = {
            "image_to_caption": ranks.image_to_caption.cpu().numpy(),
            "caption_to_image": ranks.caption_to_image.cpu().numpy(),
            "image_of_caption": split.image_of_caption,
        }
        return Evaluation(metrics, arrays)

    def _embed_captions(self, captions: list[list[int]]) -> Float[Tensor, "caption dim"]:
        ids, lengths = padded(captions)
        return self.model.embed_captions(ids.to(self.device), lengths)
