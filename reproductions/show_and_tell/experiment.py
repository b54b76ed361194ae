"""Show and Tell on a data set. Captions and images are also ranked by likelihood, unless there are too many pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from capbench.captioners.experiment import CaptioningExperiment
from capbench.data.batches import distinct, shuffled
from capbench.data.captions import Split
from capbench.metrics.retrieval import Ranks, match_ranks, retrieval_metrics
from capbench.training.experiment import Evaluation, Inputs

from .objective import objective
from .ranking import likelihoods, normalised
from .recipe import NICRecipe

PAIRS = 10_000_000  # that are ranked at most; Flickr8K's test set has 5,000,000, half an hour's work of one core


class ShowAndTellExperiment(CaptioningExperiment):
    """One preset with one seed."""

    recipe: NICRecipe

    def __init__(self, recipe: NICRecipe, inputs: Inputs, model: nn.Module, seed: int, device: torch.device) -> None:
        super().__init__(recipe, inputs, model, seed, device, objective)

    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        """Captions of nearly one length; of any lengths, as im2txt draws them, where the recipe says so."""
        if not self.recipe.im2txt:
            return super().batches(epoch)
        return shuffled(len(self.inputs.encoded("train")), self.recipe.training.batch_size, self.seed, epoch)

    def score(self, split: Split, likelihood: dict[str, float]) -> Evaluation:
        pairs = len(split.image_index) * len(split.caption_index)
        if pairs > PAIRS:
            scores = super().score(split, likelihood)
            notes = (f"{name}: ranking {pairs:,} pairs by likelihood was left out" for name in _DIRECTIONS)
            return replace(scores, notes=(*scores.notes, *notes))
        ranks = self.ranks(split)  # first: it takes longest, and is kept when the rest is stopped
        scores = super().score(split, likelihood)
        arrays = {name: getattr(ranks, name).cpu().numpy() for name in _DIRECTIONS}
        arrays["image_of_caption"] = split.image_of_caption
        metrics = {**scores.metrics, **retrieval_metrics(ranks)}
        return replace(scores, metrics=metrics, arrays={**scores.arrays, **arrays})

    def ranks(self, split: Split) -> Ranks:
        """The ranks of images and captions by likelihood."""
        encoded = self.inputs.encoded(split.name)[: len(split.caption_index)]
        first, which = distinct(encoded)
        images = self.source.testing(split.image_index)
        with torch.autocast(self.device.type, enabled=False):  # neighbours are closer than bf16 can tell
            log_p = likelihoods(self.model, images, [encoded[i] for i in first], self.inputs.scratch)
        return match_ranks(normalised(log_p)[:, which], torch.from_numpy(split.image_of_caption))


_DIRECTIONS = ("image_to_caption", "caption_to_image")
