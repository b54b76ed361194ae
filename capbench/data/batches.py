"""Batches as a pure function of (seed, epoch): a resumed run needs no loader state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from capbench.data.vocabulary import PAD


def length_grouped(lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The captions of one epoch in batches of nearly one length: every caption once, none alone in its batch.

    Captions are shuffled, sorted by length with ties left in shuffled order, cut into batches, and the batches are
    shuffled: so each batch is a random draw among captions of its length. `lengths` [caption] are in words.
    """
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = random.permutation(len(lengths))
    order = order[np.argsort(lengths[order], kind="stable")]
    batches = _cut(order, batch_size)
    return [random.permutation(batches[i]) for i in random.permutation(len(batches))]


def shuffled(count: int, batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The captions of one epoch in batches of any lengths: every caption once, none alone in its batch."""
    return _cut(np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count), batch_size)


def _cut(order: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Batches of `batch_size`; the last may be shorter, or longer by a caption that would be alone.

    One alone has no negative to be told from, nor a deviation to be standardised by.
    """
    starts = list(range(0, len(order), batch_size))
    if len(order) % batch_size == 1 and len(starts) > 1:
        starts.pop()
    return np.split(order, starts[1:]) if len(order) else []


def padded(captions: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "caption length"], Int[Tensor, " caption"]]:
    """Word ids padded at the end with PAD, and how many of each row count."""
    lengths = np.array([len(caption) for caption in captions], np.int64)
    ids = np.full((len(captions), lengths.max()), PAD, np.int64)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate(captions)
    return torch.from_numpy(ids), torch.from_numpy(lengths)


def distinct(captions: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first of each group of equal captions, in their order, and the place among these of each caption.

    What is made of the first ones alone is the same, to the last bit, for captions that are equal.
    """
    places: dict[tuple[int, ...], int] = {}
    which = np.array([places.setdefault(tuple(caption), len(places)) for caption in captions], np.int64)
    return np.unique(which, return_index=True)[1], which
