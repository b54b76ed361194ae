"""The captions of the benchmarks, of realistic lengths."""

from __future__ import annotations

from functools import cache

import numpy as np
from torch import Tensor

from benchmarks.bench import DEVICE
from capbench.base.errors import CapbenchError
from capbench.data.batches import length_grouped, padded, shuffled
from capbench.data.captions import CaptionDataset
from capbench.data.datasets import load_dataset
from capbench.data.vocabulary import Vocabulary

EPOCH = 4  # batches that represent an epoch


@cache
def dataset() -> CaptionDataset:
    """Flickr8K if CAPBENCH_DATA has it, else the embedded scenes."""
    try:
        return load_dataset("flickr8k")
    except CapbenchError:
        return load_dataset("scenes")


@cache
def encoded() -> tuple[Vocabulary, list[list[int]]]:
    """The training captions' vocabulary, and the captions as word ids from START to END."""
    tokens = dataset().split("train").tokens
    vocabulary = Vocabulary.build(tokens, 4)
    return vocabulary, [vocabulary.encode(words) for words in tokens]


def batches(size: int, grouped: bool) -> list[tuple[Tensor, Tensor]]:
    """EPOCH batches of `size` captions, [caption, length] on the device, and their lengths on the CPU.

    `grouped`: each batch holds captions of similar length. All batches are padded to their longest caption. Sorted by
    width, an epoch's batches are split into EPOCH equal parts; these are the middle ones, so the mean width is kept.
    """
    _, captions = encoded()
    lengths = np.array([len(caption) for caption in captions])
    numbers = length_grouped(lengths, size, 0, 0) if grouped else shuffled(len(captions), size, 0, 0)
    whole = sorted((batch for batch in numbers if len(batch) == size), key=lambda batch: int(lengths[batch].max()))
    chosen = [whole[(2 * part + 1) * len(whole) // (2 * EPOCH)] for part in range(EPOCH)]
    made = [padded([captions[i] for i in batch]) for batch in chosen]
    return [(ids.to(DEVICE), lengths_of_batch) for ids, lengths_of_batch in made]
