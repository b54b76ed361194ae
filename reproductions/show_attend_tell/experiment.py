"""Show, Attend and Tell on a data set; where the true boxes of phrases are known, attention is scored against them."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch

from capbench.captioners.experiment import CaptioningExperiment
from capbench.data.captions import Split
from capbench.metrics.alignment import locations_inside, pointing
from capbench.training.experiment import Evaluation, Inputs
from reproductions.show_attend_tell.model import ShowAttendTell
from reproductions.show_attend_tell.objective import objective


class AttentionExperiment(CaptioningExperiment):
    """One preset with one seed."""

    def __init__(self, recipe: Any, inputs: Inputs, seed: int, device: torch.device) -> None:
        def make_model(recipe: Any, vocabulary: Any, annotation: int) -> ShowAttendTell:
            return ShowAttendTell(recipe, len(vocabulary), annotation)

        super().__init__(recipe, inputs, seed, device, make_model, objective)

    def test(self, part: Split, likelihood: dict[str, float]) -> Evaluation:
        found = super().test(part, likelihood)
        if part.dataset.phrases is None:
            return found
        hits, chance, owner = self.pointing(part)
        metrics = {**found.metrics, "pointing": float(hits.mean()), "pointing_chance": float(chance.mean())}
        arrays = {"pointing": hits, "pointing_chance": chance, "image_of_phrase": owner}
        return Evaluation(metrics, {**found.arrays, **arrays}, found.notes)

    def pointing(self, part: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hit, chance and image of every phrase of the split: where attention is when a reference names a thing."""
        assert part.dataset.phrases is not None
        size = part.dataset.images[0].shape[0]
        model = cast(ShowAttendTell, self.model)
        weights, inside, owner = [], [], []
        for chunk, images, captions in self.teacher_forced(part):
            alpha = model.path(images, captions).attention.float().cpu().numpy()
            for row, caption in enumerate(chunk):
                for phrase in part.dataset.phrases[part.caption_index[caption]]:
                    weights.append(alpha[row, phrase.end - 1])  # the step that predicts the phrase's last word
                    inside.append(locations_inside(phrase.boxes, alpha.shape[2], size))
                    owner.append(part.image_of_caption[caption])
        return *pointing(np.array(weights), np.array(inside)), np.array(owner)
