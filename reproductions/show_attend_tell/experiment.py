"""Show, Attend and Tell on a data set. Attention is scored where the true boxes of phrases are known."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import torch

from capbench.captioners.experiment import CaptioningExperiment
from capbench.data.captions import Split
from capbench.metrics.alignment import locations_inside, pointing
from capbench.training.experiment import Evaluation, Inputs

from .model import ShowAttendTell
from .objective import objective
from .recipe import AttentionRecipe


class AttentionExperiment(CaptioningExperiment):
    """One preset with one seed."""

    def __init__(
        self, recipe: AttentionRecipe, inputs: Inputs, model: ShowAttendTell, seed: int, device: torch.device
    ) -> None:
        super().__init__(recipe, inputs, model, seed, device, objective)

    def score(self, split: Split, likelihood: dict[str, float]) -> Evaluation:
        scores = super().score(split, likelihood)
        if split.dataset.phrases is None:
            return scores
        hits, chance, image_of_phrase = self.pointing(split)
        metrics = {**scores.metrics, "pointing": float(hits.mean()), "pointing_chance": float(chance.mean())}
        arrays = {"pointing": hits, "pointing_chance": chance, "image_of_phrase": image_of_phrase}
        return replace(scores, metrics=metrics, arrays={**scores.arrays, **arrays})

    def pointing(self, split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hit, chance and image of each phrase of a split: where attention is when a reference names a thing."""
        assert split.dataset.phrases is not None
        size = split.dataset.images[0].shape[0]
        model = cast(ShowAttendTell, self.model)
        weights, inside, image_of_phrase = [], [], []
        for chunk, images, captions in self.teacher_forced(split):
            alpha = model.path(images, captions).attention.float().cpu().numpy()
            for row, caption in enumerate(chunk):
                for phrase in split.dataset.phrases[split.caption_index[caption]]:
                    weights.append(alpha[row, phrase.end - 1])  # the step that predicts the phrase's last word
                    inside.append(locations_inside(phrase.boxes, alpha.shape[2], size))
                    image_of_phrase.append(split.image_of_caption[caption])
        return *pointing(np.array(weights), np.array(inside)), np.array(image_of_phrase)
