"""Batches are a pure function of (seed, epoch), so a resumed run needs no loader state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from capbench.data.vocabulary import PAD


def length_grouped(lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """One epoch's captions in batches of nearly one length: each caption once, none alone.

    Captions are shuffled, stably sorted by length, and cut into batches, which are shuffled: a batch is a random draw
    among captions of its length. `lengths` [caption] count words.

    >>> lengths = np.array([3, 9, 3, 9])
    >>> sorted(lengths[batch].tolist() for batch in length_grouped(lengths, 2, seed=0, epoch=0))
    [[3, 3], [9, 9]]
    """
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = random.permutation(len(lengths))
    order = order[np.argsort(lengths[order], kind="stable")]
    batches = _cut(order, batch_size)
    return [random.permutation(batches[i]) for i in random.permutation(len(batches))]


def shuffled(count: int, batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """One epoch's captions in batches of any lengths: each caption once, none alone."""
    return _cut(np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count), batch_size)


def _cut(order: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Batches of `batch_size`; the last may be shorter, or longer by a caption that would be alone.

    A single caption has no negative, and no deviation to standardise by.
    """
    starts = list(range(0, len(order), batch_size))
    if len(order) % batch_size == 1 and len(starts) > 1:
        starts.pop()
    return np.split(order, starts[1:]) if len(order) else []


def padded(captions: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "caption length"], Int[Tensor, " caption"]]:
    """Word ids padded at the end with PAD, and the length of each caption.

    >>> padded([[1, 5, 2], [1, 2]])
    (tensor([[1, 5, 2],
            [1, 2, 0]]), tensor([3, 2]))
    """
    lengths = np.array([len(caption) for caption in captions], np.int64)
    ids = np.full((len(captions), lengths.max()), PAD, np.int64)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate(captions)
    return torch.from_numpy(ids), torch.from_numpy(lengths)


def distinct(captions: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of the distinct captions, in order of first appearance, and which of them each caption is.

    Whatever is computed for the distinct captions alone has the same bits for equal captions.

    >>> [numbers.tolist() for numbers in distinct([[3, 1], [2], [3, 1]])]
    [[0, 1], [0, 1, 0]]
    """
    places: dict[tuple[int, ...], int] = {}
    which = np.array([places.setdefault(tuple(caption), len(places)) for caption in captions], np.int64)
    return np.unique(which, return_index=True)[1], which
