"""VSE++ on a data set: batches in, loss out, retrieval scores at the end."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from capbench.data.batches import length_grouped, padded
from capbench.data.images import one_crop, random_crop
from capbench.metrics.retrieval import evaluate_protocol
from capbench.paper import Inputs
from capbench.training import Evaluation
from reproductions.vsepp import objective
from reproductions.vsepp.model import VSE
from reproductions.vsepp.recipe import Recipe

LOSSES = {"sum_of_hinges": objective.sum_of_hinges, "max_of_hinges": objective.max_of_hinges}
CHUNK = 512  # captions or images embedded at a time in evaluation


class VSEExperiment:
    """One preset with one seed. A batch is captions of the training split, each with its image."""

    def __init__(self, recipe: Recipe, inputs: Inputs, seed: int, device: torch.device) -> None:
        torch.manual_seed(seed)
        self.recipe, self.inputs, self.seed, self.device = recipe, inputs, seed, device
        self.train = inputs.dataset.split("train")
        self.model = VSE(recipe, len(inputs.vocabulary), inputs.features.array.shape[1])
        self.features = torch.from_numpy(np.array(inputs.features.array)).to(device)
        if recipe.input == "standardised_roots":
            self.model.standardise(self.features[self.train.image_index].cpu())
        self.encoder = (copy.deepcopy(inputs.encoder) if recipe.finetune else inputs.encoder).to(device)
        if inputs.start is not None:
            self.model.load_state_dict(inputs.start)
        if recipe.finetune:
            self.model.encoder = self.encoder.trainable()
        self.model.to(device)
        self._encode = cache(self._encode)  # type: ignore[method-assign]

    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        lengths = np.array([len(caption) for caption in self._encode("train")])
        return length_grouped(lengths, self.recipe.training.batch_size, self.seed, epoch)

    def loss(self, batch: np.ndarray, epoch: int) -> Tensor:
        pairs = self.train.image_of_caption[batch]
        images = self.model.embed_images(self._phi(self.train.image_index[pairs]))
        captions = self._embed_captions([self._encode("train")[i] for i in batch])
        matched = objective.matched_pairs(torch.from_numpy(pairs), self.recipe.negatives).to(self.device)
        hinge = LOSSES["sum_of_hinges" if epoch < self.recipe.warmup else self.recipe.loss]
        return hinge(self.model.similarity(images.float(), captions.float()), matched, self.recipe.margin)

    def evaluate(self, split: str, protocol: str) -> Evaluation:
        part = self.inputs.dataset.split(split)
        encoded = self._encode(split)
        images = [self.model.embed_images(phi) for phi in self._test_phi(part.image_index)]
        captions = [self._embed_captions(encoded[i : i + CHUNK]) for i in range(0, len(encoded), CHUNK)]
        owner = torch.from_numpy(part.image_of_caption).to(self.device)
        metrics, ranks = evaluate_protocol(
            torch.cat(images), torch.cat(captions), owner, protocol, self.model.similarity
        )
        arrays = {
            "image_to_caption": ranks.image_to_caption.cpu().numpy(),
            "caption_to_image": ranks.caption_to_image.cpu().numpy(),
            "image_of_caption": part.image_of_caption,
        }
        return Evaluation(metrics, arrays)

    def _encode(self, split: str) -> list[list[int]]:
        return [self.inputs.vocabulary.encode(tokens) for tokens in self.inputs.dataset.split(split).tokens]

    def _embed_captions(self, captions: list[list[int]]) -> Float[Tensor, "caption dim"]:
        ids, lengths = padded(captions)
        return self.model.embed_captions(ids.to(self.device), lengths)

    def _phi(self, images: np.ndarray) -> Float[Tensor, "image feature"]:
        """Features to train on: stored ones, or of fresh random crops where the recipe crops or fine-tunes."""
        if self.recipe.crop != "RC":
            return self.features[images]
        generator = np.random.default_rng(torch.initial_seed())  # the loop seeds each step
        size, pictures = self.encoder.input_size, self.inputs.dataset.images
        pixels = torch.stack([random_crop(pictures[int(i)], size, generator) for i in images])
        with torch.set_grad_enabled(self.recipe.finetune):
            return self.encoder(pixels.to(self.device))

    def _test_phi(self, images: np.ndarray) -> Iterator[Float[Tensor, "image feature"]]:
        """Features to score: stored ones of the centre crop, or of the encoder as fine-tuning has left it."""
        size, pictures = self.encoder.input_size, self.inputs.dataset.images
        for start in range(0, len(images), CHUNK):
            rows = images[start : start + CHUNK]
            if not self.recipe.finetune:
                yield self.features[rows]
                continue
            with ThreadPoolExecutor() as pool:
                pixels = torch.stack(list(pool.map(lambda i: one_crop(pictures[int(i)], size), rows)))
            yield torch.cat([self.encoder(part.to(self.device)) for part in pixels.split(64)])
