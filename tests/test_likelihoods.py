"""Show and Tell's ranking by likelihood: the tree of prefixes gives what each pair alone gives, and can be resumed."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from capbench.base.errors import StoppedError
from capbench.data.batches import distinct
from capbench.data.vocabulary import END, START, Vocabulary
from reproductions.show_and_tell import make_model, ranking
from reproductions.show_and_tell.ranking import likelihoods, normalised, prefix_tree
from reproductions.show_and_tell.recipe import presets

VOCABULARY = Vocabulary(tuple(f"w{i}" for i in range(20)), (9,) * 20)
DIM = 8


def captions_that_share_prefixes(count: int) -> list[list[int]]:
    """Of up to six words from five, in no order, with a caption without a word and one that begins another."""
    random = np.random.default_rng(0)
    drawn = [[START, *random.integers(4, 9, length).tolist(), END] for length in random.integers(0, 7, count)]
    made = [*drawn, [START, END], [START, 4, 5, END], [START, 4, 5, 6, END]]
    return [made[i] for i in distinct(made)[0]]


CAPTIONS = captions_that_share_prefixes(120)


def model(preset: str = "nic") -> Any:
    torch.manual_seed(0)
    recipe = replace(presets("flickr8k")[preset], embedding_dim=10, hidden_dim=12)
    return make_model(recipe, VOCABULARY, DIM).eval()


@torch.no_grad()
def one_by_one(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """log p of each pair alone: the sum over the words of a forward pass."""
    rows = []
    for image in images:
        log_ps = [model(image[None], torch.tensor([words]))[0].log_softmax(-1) for words in CAPTIONS]
        pairs = zip(log_ps, CAPTIONS, strict=True)
        rows.append([float(log_p.gather(1, torch.tensor(words[1:])[:, None]).sum()) for log_p, words in pairs])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("preset", ["nic", "nic-ours", "nic-ensemble-ours"])
@pytest.mark.parametrize("block", [1, 3, 64])
def test_the_tree_gives_the_likelihood_of_each_pair_alone(preset, block, monkeypatch):
    monkeypatch.setattr(ranking, "PREFIXES_AT_ONCE", block)
    monkeypatch.setattr(ranking, "IMAGES_AT_ONCE", 2)
    of_pairs = model(preset)
    images = torch.randn(5, DIM)
    assert torch.allclose(likelihoods(of_pairs, images, CAPTIONS, None), one_by_one(of_pairs, images), atol=1e-5)


def test_the_tree_is_exact_in_float64():
    of_pairs, images = model().double(), torch.randn(3, DIM, dtype=torch.float64)
    assert torch.allclose(likelihoods(of_pairs, images, CAPTIONS, None), one_by_one(of_pairs, images), atol=1e-12)


def test_a_prefix_is_read_once_however_many_captions_begin_with_it():
    prefixes = {tuple(caption[:length]) for caption in CAPTIONS for length in range(1, len(caption))}
    tree = prefix_tree(CAPTIONS)
    assert sum(block.prefixes.stop - block.prefixes.start for blocks in tree for block in blocks) == len(prefixes)
    assert sorted(torch.cat([block.captions for blocks in tree for block in blocks]).tolist()) == [
        *range(len(CAPTIONS))
    ]


def test_the_shares_of_the_images_in_a_caption_sum_to_one():
    shares = normalised(likelihoods(model(), torch.randn(4, DIM), CAPTIONS, None)).exp().sum(0)
    assert shares.tolist() == pytest.approx([1.0] * len(CAPTIONS))


def test_a_ranking_that_was_stopped_goes_on_with_the_images_that_are_left(monkeypatch, tmp_path):
    monkeypatch.setattr(ranking, "IMAGES_AT_ONCE", 2)
    of_pairs, images = model(), torch.randn(7, DIM)
    whole = likelihoods(of_pairs, images, CAPTIONS, None)
    work, computed = ranking._likelihoods, []

    def noted(readers, some, *rest):
        computed.append(len(some))
        if computed == [2, 2]:
            os.kill(os.getpid(), signal.SIGTERM)
        return work(readers, some, *rest)

    monkeypatch.setattr(ranking, "_likelihoods", noted)
    with pytest.raises(StoppedError):
        likelihoods(of_pairs, images, CAPTIONS, tmp_path / "scratch")
    assert torch.equal(likelihoods(of_pairs, images, CAPTIONS, tmp_path / "scratch"), whole)
    assert computed == [2, 2, 2, 1]


def test_what_another_model_left_is_not_taken(tmp_path):
    images = torch.randn(2, DIM)
    of_first = likelihoods(model(), images, CAPTIONS, tmp_path)
    of_other = likelihoods(model("nic-ours"), images, CAPTIONS, tmp_path)
    assert torch.equal(of_other, likelihoods(model("nic-ours"), images, CAPTIONS, None))
    assert not torch.equal(of_other, of_first)


def test_an_ensemble_of_equal_models_ranks_as_one_of_them():
    both = model("nic-ensemble-ours")
    for member in both.members:
        member.load_state_dict(both.members[0].state_dict())
    images = torch.randn(2, DIM)
    alone = likelihoods(both.members[0], images, CAPTIONS, None)
    assert torch.allclose(likelihoods(both, images, CAPTIONS, None), alone, atol=1e-12)
