"""The features of a batch: from the store, or from the encoder."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.data.images import one_crop, random_crop
from capbench.training.experiment import Inputs, Recipe
from capbench.vision.encoders import Encoder

PICTURES_AT_ONCE = 64


class FeatureSource:
    """Features of images, given as indices into the data set: [image, dim] or [image, location, dim], on the device.

    They come from the store, with two exceptions. Where `recipe.view` is RC, training encodes a new random crop at each
    step. With `recipe.finetune`, a copy of the encoder is trained, and encodes the images for testing too.
    """

    def __init__(self, inputs: Inputs, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device, self.images = recipe, device, inputs.dataset.images
        self.stored = inputs.features.array
        self.finetune = recipe.finetune
        encoder = copy.deepcopy(inputs.encoder) if self.finetune else inputs.encoder
        self._encoder = None if encoder is None else encoder.to(device)
        self.on_device = torch.from_numpy(np.array(self.stored)).to(device) if self._fits() else None

    @property
    def encoder(self) -> Encoder:
        """The network. Raises CapbenchError where the features were imported: none is behind them."""
        if self._encoder is None:
            raise CapbenchError("imported features have no encoder to train, or to show random crops to")
        return self._encoder

    def training(self, images: np.ndarray) -> Float[Tensor, "image ... dim"]:
        """Features for training. Crops depend on torch's seed, which the training loop sets at each step."""
        if self.recipe.view != "RC":
            return self._from_store(images)
        generator = np.random.default_rng(torch.initial_seed())
        pixels = [random_crop(self.images[int(i)], self.encoder.input_size, generator) for i in images]
        precision = nullcontext() if self.finetune else torch.autocast(self.device.type, enabled=False)
        with precision, torch.set_grad_enabled(self.finetune):  # a fixed encoder computes as for the store
            return self.encoder(torch.stack(pixels).to(self.device))

    def testing(self, images: np.ndarray) -> Float[Tensor, "image ... dim"]:
        """Features for scoring: stored, or of the centre crop by the encoder that is fine-tuned."""
        if not self.finetune:
            return self._from_store(images)
        size = self.encoder.input_size
        with ThreadPoolExecutor() as pool:
            pixels = torch.stack(list(pool.map(lambda i: one_crop(self.images[int(i)], size), images)))
        return torch.cat([self.encoder(chunk.to(self.device)) for chunk in pixels.split(PICTURES_AT_ONCE)])

    def _from_store(self, images: np.ndarray) -> Tensor:
        if self.on_device is not None:
            return self.on_device[torch.from_numpy(images).to(self.device)]
        return torch.from_numpy(self.stored[images]).to(self.device)

    def _fits(self) -> bool:
        """Vectors are kept on the device; grids, of some gigabytes, only on a GPU with room for them."""
        if self.device.type == "cuda":
            return self.stored.nbytes < torch.cuda.mem_get_info(self.device)[0] // 4
        return self.stored.ndim == 2
