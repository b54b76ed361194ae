"""Ranking images and captions by likelihood (Show and Tell, section 4.3.5, tables 4 and 5).

The captions share prefixes, so that they make a tree. A prefix is read once for each image, whatever words follow it:
the LSTM makes one step, and its scores of all words give the probability of each that follows. Flickr8K's 4,991
distinct test captions have 59,141 words, and 40,043 prefixes that a word follows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from numpy.lib.format import open_memmap
from torch import Tensor, nn

from capbench.base.errors import StoppedError
from capbench.base.files import atomic_write
from capbench.base.progress import reporter
from capbench.base.signals import stop_requests
from capbench.captioners.experiment import Ensemble
from capbench.data.vocabulary import END, START
from capbench.training import processes
from capbench.vision.weights import hash_tensors

from .model import ShowAndTell

VERSION = 1  # of the computation: a change starts a stopped ranking anew
IMAGES_AT_ONCE = 8  # kept together when they are done; their states of one depth take 300 MB on Flickr8K
PREFIXES_AT_ONCE = 64  # the scores of all words after them, for the images at once, are about as large as a cache


def normalised(log_p: Float[Tensor, "image caption"]) -> Float[Tensor, "image caption"]:
    """log p(S | I) - log sum_I' p(S | I'), the sum being over the images given.

    Without it the most common captions would come first for every image. The order of images for a caption stays the
    same.
    """
    return log_p - log_p.logsumexp(0, keepdim=True)


@torch.no_grad()
def likelihoods(
    model: nn.Module, images: Float[Tensor, "image feature"], captions: Sequence[Sequence[int]], scratch: Path | None
) -> Float64[Tensor, "image caption"]:
    """log p(S | I) of every image and caption, END included; for an ensemble, of the mean probability of each word.

    `captions` are distinct, each from START to END. Finished images are kept in the folder `scratch`, and read from it
    by the next call with the same model, images and captions. Raises StoppedError after a signal.
    """
    members: Any = model.members if isinstance(model, Ensemble) else [model]
    readers = [_Reader(member) for member in members]
    tree = prefix_tree(captions)
    done = _kept(scratch, model, images, captions)

    def of_slice(rows: slice) -> Float64[Tensor, "image caption"]:
        if np.isnan(done[rows]).any():
            return _likelihoods(readers, images[rows], tree, len(captions)).T.cpu()
        return torch.from_numpy(np.array(done[rows]))

    slices = _slices(len(images), IMAGES_AT_ONCE)
    with reporter(processes.main(), "ranking by likelihood") as report, stop_requests() as stop_requested:
        for first in range(0, len(slices), processes.size()):
            at_once = slices[first : first + processes.size()]
            for rows, values in zip(at_once, processes.mapped(of_slice, at_once), strict=True):
                done[rows] = values.numpy()
            report(at_once[-1].stop, len(images))
            if processes.any_of(stop_requested()):
                raise StoppedError
    return torch.from_numpy(np.array(done))


@dataclass(frozen=True)
class Block:
    """Some prefixes of one depth, with the words that follow them. Those that END follows are captions."""

    prefixes: slice  # among those of their depth
    longer: slice  # the prefixes of the next depth that continue them
    at: Int[Tensor, " follower"]  # which of the block's prefixes is followed: by the last word of each of `longer`,
    word: Int[Tensor, " follower"]  # then by END
    captions: Int[Tensor, " caption"]  # what END completes


def prefix_tree(captions: Sequence[Sequence[int]]) -> list[list[Block]]:
    """The blocks of each depth, the prefix START first.

    >>> [[(block.word.tolist(), block.captions.tolist())] for (block,) in prefix_tree([[1, 5, 2], [1, 5, 6, 2]])]
    [[([5], [])], [([6, 2], [0])], [([2], [1])]]
    """
    order = np.array(sorted(range(len(captions)), key=lambda caption: tuple(captions[caption])))
    prefix = np.zeros(len(order), np.int64)  # of each caption that goes on, among those of the depth
    tree, depth, size = [], 1, 1
    while len(order):
        word = np.array([captions[caption][depth] for caption in order])
        ends = word == END
        pairs = np.stack([prefix[~ends], word[~ends]], 1)
        children, which = np.unique(pairs, axis=0, return_inverse=True)
        blocks = _slices(size, PREFIXES_AT_ONCE)
        tree.append([_block(block, children, prefix[ends], order[ends]) for block in blocks])
        order, prefix, depth, size = order[~ends], which.reshape(-1), depth + 1, len(children)
    return tree


def _slices(size: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, size)) for first in range(0, size, step)]


def _block(prefixes: slice, children: np.ndarray, ended: np.ndarray, captions: np.ndarray) -> Block:
    """The block of some prefixes, of all children (parent, word) and ends of their depth, in the order of parents."""
    longer = slice(*np.searchsorted(children[:, 0], [prefixes.start, prefixes.stop]).tolist())
    ends = slice(*np.searchsorted(ended, [prefixes.start, prefixes.stop]).tolist())
    at = np.concatenate([children[longer, 0], ended[ends]]) - prefixes.start
    word = np.concatenate([children[longer, 1], np.full(ends.stop - ends.start, END)])
    return Block(prefixes, longer, torch.from_numpy(at), torch.from_numpy(word), torch.from_numpy(captions[ends]))


class _Reader:
    """One model's LSTM and scores. What a word adds to the gates, W_ih W_e S, is computed once for each word."""

    def __init__(self, model: ShowAndTell) -> None:
        self.model = model
        w_ih, self.w_hh, b_ih, b_hh = (model.lstm.get_parameter(f"{name}_l0") for name in _PARAMETERS)
        self.of_word = model.W_e.weight @ w_ih.T + b_ih + b_hh

    def start(self, images: Float[Tensor, "image feature"]) -> Float[Tensor, "2 1 image hidden"]:
        """The state, m and c, after the image and START, the only prefix of its length."""
        state = self.model.start(images)
        m, c = (state[name].transpose(0, 1) for name in ("hidden", "cell"))
        return _lstm(m @ self.w_hh.T + self.of_word[START], c)

    def step(
        self, state: Float[Tensor, "2 prefix image hidden"], block: Block
    ) -> Float[Tensor, "2 longer image hidden"]:
        """The state after the block's longer prefixes, given that after its prefixes. Siblings share W_hh m."""
        m, c = state
        at, word = (entry[: block.longer.stop - block.longer.start] for entry in (block.at, block.word))
        parents, which = at.unique_consecutive(return_inverse=True)
        gates = (m[parents] @ self.w_hh.T)[which]
        return _lstm(gates.add_(self.of_word[word][:, None]), c[at])

    def log_probs(
        self, state: Float[Tensor, "2 prefix image hidden"], block: Block
    ) -> Float64[Tensor, "follower image"]:
        """log p of the words that follow the block's prefixes."""
        scores = self.model.word(state[0])
        followers = scores[block.at, :, block.word]
        largest = scores.amax(-1)
        normaliser = scores.sub_(largest[..., None]).exp_().sum(-1).log_().add_(largest)
        return (followers - normaliser[block.at]).double()


_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _lstm(gates: Float[Tensor, "prefix image gates"], c: Float[Tensor, "prefix image hidden"]) -> Tensor:
    """m and c after a step, [2, prefix, image, hidden]. Overwrites `gates`."""
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid_().mul_(c).add_(i.sigmoid_().mul_(g.tanh_()))
    return torch.stack([o.sigmoid_().mul_(c.tanh()), c])


def _likelihoods(
    readers: Sequence[_Reader], images: Float[Tensor, "image feature"], tree: Sequence[Sequence[Block]], captions: int
) -> Float64[Tensor, "caption image"]:
    """log p of the captions for a few images, one depth of the tree after the other."""
    result = torch.empty(captions, len(images), dtype=torch.float64)
    total = torch.zeros(1, len(images), dtype=torch.float64)  # log p of each prefix
    states = [reader.start(images) for reader in readers]
    for blocks in tree:
        size = blocks[-1].longer.stop
        longer = [state.new_empty(2, size, *state.shape[2:]) for state in states]
        total_of_longer = total.new_empty(size, len(images))
        for block in blocks:
            of_members = []
            for reader, state, after in zip(readers, states, longer, strict=True):
                of_members.append(reader.log_probs(state[:, block.prefixes], block))
                after[:, block.longer] = reader.step(state[:, block.prefixes], block)
            log_p = torch.stack(of_members).logsumexp(0).sub_(math.log(len(readers))).cpu()
            log_p += total[block.prefixes][block.at]
            goes_on = len(log_p) - len(block.captions)
            total_of_longer[block.longer], result[block.captions] = log_p[:goes_on], log_p[goes_on:]
        states, total = longer, total_of_longer
    return result


def _kept(
    scratch: Path | None, model: nn.Module, images: Tensor, captions: Sequence[Sequence[int]]
) -> Float64[np.ndarray, "image caption"]:
    """What an earlier call left, NaN where it did not finish an image; an array that lasts where there is a folder.

    Only the main process has the folder.
    """
    if processes.size() > 1:
        done: list[np.ndarray] = []

        def load() -> processes.Checkpoint:
            with processes.alone():
                done.append(_kept(scratch, model, images, captions))
            return {"done": torch.from_numpy(np.array(done[0]))}, {}

        found = processes.told(load)
        assert found is not None
        return done[0] if done else found[0]["done"].numpy()
    nothing = np.full((len(images), len(captions)), np.nan)
    if scratch is None:
        return nothing
    words = torch.tensor([word for caption in captions for word in caption])
    of_what = hash_tensors({**model.state_dict(), "of images": images, "of words": words})
    path = scratch / f"likelihoods-{VERSION}-{of_what[:16]}.npy"
    if not path.exists():
        atomic_write(path, lambda file: np.save(file, nothing))
    kept: np.ndarray = open_memmap(path, mode="r+")
    return kept
