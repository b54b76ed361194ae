"""Where the features of a batch come from: the store, or the encoder as it is now."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from capbench.data.images import one_crop, random_crop
from capbench.training.experiment import Inputs, Recipe
from capbench.vision.encoders import Encoder

PICTURES_AT_ONCE = 64


class FeatureSource:
    """Features of images by their number in the data set, [image, dim] or [image, location, dim], on the device.

    Stored ones, unless `recipe.view` is RC: then training sees the encoder's features of a fresh random
    crop at each step. With `recipe.finetune`, the encoder learns and nothing is stored.
    """

    def __init__(self, inputs: Inputs, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device, self.images = recipe, device, inputs.dataset.images
        self.stored = inputs.features.array
        self.finetune = recipe.finetune
        encoder: Encoder = copy.deepcopy(inputs.encoder) if self.finetune else inputs.encoder
        self.encoder = encoder.to(device)
        self.on_device = torch.from_numpy(np.array(self.stored)).to(device) if self._fits() else None

    def training(self, images: np.ndarray) -> Float[Tensor, "image ... dim"]:
        """Features to learn from. Crops are drawn from torch's seed, which the training loop sets at each step."""
        if self.recipe.view != "RC":
            return self._from_store(images)
        generator = np.random.default_rng(torch.initial_seed())
        pixels = [random_crop(self.images[int(i)], self.encoder.input_size, generator) for i in images]
        precision = nullcontext() if self.finetune else torch.autocast(self.device.type, enabled=False)
        with precision, torch.set_grad_enabled(self.finetune):  # a frozen encoder gives what the store has
            return self.encoder(torch.stack(pixels).to(self.device))

    def testing(self, images: np.ndarray) -> Float[Tensor, "image ... dim"]:
        """Features to score: stored ones, or of the centre crop through the encoder that is being fine-tuned."""
        if not self.finetune:
            return self._from_store(images)
        size = self.encoder.input_size
        with ThreadPoolExecutor() as pool:
            pixels = torch.stack(list(pool.map(lambda i: one_crop(self.images[int(i)], size), images)))
        return torch.cat([self.encoder(part.to(self.device)) for part in pixels.split(PICTURES_AT_ONCE)])

    def _from_store(self, images: np.ndarray) -> Tensor:
        if self.on_device is not None:
            return self.on_device[torch.from_numpy(images).to(self.device)]
        return torch.from_numpy(self.stored[images]).to(self.device)

    def _fits(self) -> bool:
        """Vectors are kept in memory; grids, some gigabytes, only on a GPU with room for them."""
        if self.device.type == "cuda":
            return self.stored.nbytes < torch.cuda.mem_get_info(self.device)[0] // 4
        return self.stored.ndim == 2
