"""Show and Tell on a data set; where it is quick, captions and images are also ranked by likelihood."""

from __future__ import annotations

from typing import Any

import torch

from capbench.captioners.experiment import CaptioningExperiment, MakeModel
from capbench.data.batches import distinct, padded
from capbench.data.captions import Split
from capbench.metrics.retrieval import match_ranks, retrieval_metrics
from capbench.training.experiment import Evaluation, Inputs
from reproductions.show_and_tell.objective import objective
from reproductions.show_and_tell.ranking import likelihoods, normalised

PAIRS = {"cpu": 100_000, "cuda": 10_000_000}  # ranked at most; all pairs of Flickr8K's test set are 5,000,000


class ShowAndTellExperiment(CaptioningExperiment):
    """One preset with one seed."""

    def __init__(self, recipe: Any, inputs: Inputs, seed: int, device: torch.device, make_model: MakeModel) -> None:
        super().__init__(recipe, inputs, seed, device, make_model, objective)

    def test(self, part: Split, likelihood: dict[str, float]) -> Evaluation:
        found = super().test(part, likelihood)
        pairs = len(part.image_index) * len(part.caption_index)
        if pairs > PAIRS.get(self.device.type, 0):
            notes = (f"{name}: ranking {pairs:,} pairs by likelihood was left out" for name in _DIRECTIONS)
            return Evaluation(found.metrics, found.arrays, (*found.notes, *notes))
        encoded = self.inputs.encoded(part.name)
        first, which = distinct(encoded)
        captions, _ = padded([encoded[i] for i in first])
        images = self.source.testing(part.image_index)
        with torch.autocast(self.device.type, enabled=False):  # neighbours are closer than bf16 can tell
            log_p = normalised(likelihoods(self.model, images, captions.to(self.device)))
        ranks = match_ranks(log_p[:, which], torch.from_numpy(part.image_of_caption))
        arrays = {name: getattr(ranks, name).cpu().numpy() for name in _DIRECTIONS}
        arrays["image_of_caption"] = part.image_of_caption
        return Evaluation({**found.metrics, **retrieval_metrics(ranks)}, {**found.arrays, **arrays}, found.notes)


_DIRECTIONS = ("image_to_caption", "caption_to_image")
