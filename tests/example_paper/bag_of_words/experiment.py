"""The paper on a data set: batches in, loss out, retrieval scores at the end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from capbench.data.batches import padded, shuffled
from capbench.metrics.retrieval import evaluate_protocol
from capbench.training.experiment import Evaluation, Inputs
from capbench.training.sources import FeatureSource

from .model import BagOfWords
from .objective import objective
from .recipe import BagRecipe


class BagExperiment:
    """One preset with one seed."""

    def __init__(self, recipe: BagRecipe, inputs: Inputs, model: BagOfWords, seed: int, device: torch.device) -> None:
        self.recipe, self.inputs, self.model, self.seed, self.device = recipe, inputs, model.to(device), seed, device
        self.train = inputs.dataset.split("train")
        self.source = FeatureSource(inputs, recipe, device)

    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        return shuffled(len(self.train.caption_index), self.recipe.training.batch_size, self.seed, epoch)

    def loss(self, batch: np.ndarray, epoch: int) -> Tensor:
        images = self.model.embed_images(self.source.training(self.train.images_of(batch)))
        image_ids = torch.from_numpy(self.train.image_of_caption[batch]).to(self.device)
        captions = self._captions("train", batch)
        return objective(self.recipe, images.float(), captions.float(), image_ids)

    def validate(self) -> Evaluation:
        return self._ranked("val", "whole")

    def test(self, protocol: str) -> Evaluation:
        return self._ranked("test", protocol)

    def _ranked(self, name: str, protocol: str) -> Evaluation:
        split = self.inputs.dataset.split(name)
        images = self.model.embed_images(self.source.testing(split.image_index))
        captions = self._captions(name, np.arange(len(split.caption_index)))
        image_ids = torch.from_numpy(split.image_of_caption).to(self.device)
        metrics, ranks = evaluate_protocol(images, captions, image_ids, protocol)
        arrays = {
            "image_to_caption": ranks.image_to_caption.cpu().numpy(),
            "caption_to_image": ranks.caption_to_image.cpu().numpy(),
            "image_of_caption": split.image_of_caption,
        }
        return Evaluation(metrics, arrays)

    def _captions(self, split: str, chosen: np.ndarray) -> Tensor:
        ids, lengths = padded([self.inputs.encoded(split)[i] for i in chosen])
        return self.model.embed_captions(ids.to(self.device), lengths)
