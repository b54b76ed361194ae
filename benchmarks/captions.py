"""The captions that benchmarks work on, with the lengths that captions have."""

from __future__ import annotations

from functools import cache

import numpy as np
from torch import Tensor, nn

from benchmarks.bench import DEVICE
from capbench.data.batches import length_grouped, padded, shuffled
from capbench.data.captions import CaptionDataset
from capbench.data.datasets import load_dataset
from capbench.data.vocabulary import PAD, Vocabulary
from capbench.errors import CapbenchError

BATCHES = 24  # that a way goes through again and again


@cache
def dataset() -> CaptionDataset:
    """Flickr8K where CAPBENCH_DATA holds it, else the embedded scenes."""
    try:
        return load_dataset("flickr8k")
    except CapbenchError:
        return load_dataset("scenes")


@cache
def encoded() -> tuple[Vocabulary, list[list[int]]]:
    """The vocabulary of the training captions, and these captions as word numbers, START to END."""
    tokens = dataset().split("train").tokens
    vocabulary = Vocabulary.build(tokens, 4)
    return vocabulary, [vocabulary.encode(words) for words in tokens]


def batches(size: int, grouped: bool, longest: bool = False) -> list[tuple[Tensor, Tensor]]:
    """Batches of `size` captions, [caption, length] on the device, with their lengths, on the CPU: of nearly one length
    each or as they come; padded to the longest of its batch, or of the data set."""
    _, captions = encoded()
    lengths = np.array([len(caption) for caption in captions])
    numbers = length_grouped(lengths, size, 0, 0) if grouped else shuffled(len(captions), size, 0, 0)
    made = [padded([captions[i] for i in batch]) for batch in numbers if len(batch) == size]
    width = int(lengths.max()) if longest else 0
    return [
        (nn.functional.pad(ids, (0, max(0, width - ids.shape[1])), value=PAD).to(DEVICE), own)
        for ids, own in made[:BATCHES]
    ]
