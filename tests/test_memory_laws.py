"""What the operations hold beyond their inputs, on a CPU: a bound by the sizes, which the plain forms exceed by far.

Bytes as torch's allocator counts them. What grows with one side alone is checked at two sizes.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from capbench.kernels.attention import attention_step
from capbench.kernels.attention import cpu as attention
from capbench.kernels.attention.reference import reference_attention_step
from capbench.kernels.log_prob import cpu as log_prob
from capbench.kernels.log_prob import target_log_probs
from capbench.kernels.log_prob.reference import reference_target_log_probs
from capbench.kernels.maxsim import cpu as blocks_of_maxsim
from capbench.kernels.maxsim import maxsim
from capbench.kernels.ranking_loss import ranking_loss
from capbench.kernels.ranking_loss.reference import ELEMENTS_AT_ONCE
from capbench.kernels.ranks.cpu import CPU_TILE
from capbench.metrics.retrieval import embedding_ranks
from capbench.timing.measure import peak_bytes

FLOAT = 4


def backward(function, *inputs):
    """Values and gradients, as a training step asks for them."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    return lambda: torch.autograd.grad(function(*(x * 1 for x in leaves)).sum(), leaves)


@pytest.mark.parametrize("pairs", [1500, 6000])
@pytest.mark.parametrize(("loss", "rows", "blocks"), [("max_of_hinges", 8, 3), ("sum_of_hinges", 10, 6)])
def test_a_ranking_loss_holds_rows_and_a_block(pairs, loss, rows, blocks):
    dim, image_ids = 32, torch.arange(pairs)
    images, captions = (torch.nn.functional.normalize(torch.randn(pairs, dim), dim=1) for _ in range(2))
    law = FLOAT * (rows * pairs * dim + 40 * pairs + blocks * ELEMENTS_AT_ONCE)
    value = partial(ranking_loss, image_ids=image_ids, margin=0.2, loss=loss)
    held = peak_bytes(backward(value, images, captions), "cpu")
    assert held < law
    if pairs == 6000:
        assert law < FLOAT * pairs**2  # a single matrix, of which the dense form holds several


@pytest.mark.parametrize("images", [500, 4000])
def test_ranks_hold_a_tile_and_some_numbers_for_each_item(images):
    image_of_caption = torch.arange(images).repeat_interleave(5)
    v, c = torch.randn(images, 16), torch.randn(5 * images, 16)
    law = 3 * FLOAT * CPU_TILE + 8 * 12 * len(image_of_caption)
    assert peak_bytes(partial(embedding_ranks, v, c, image_of_caption, "dot"), "cpu") < law
    if images == 4000:
        assert law < FLOAT * images * len(image_of_caption) / 10


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("captions", [100, 400])
def test_maxsim_holds_a_tile_and_the_winner_of_each_image_and_word(captions, gradient):
    images, regions, words, dim = 60, 20, 12, 16
    v, s, lengths = torch.randn(images, regions, dim), torch.randn(captions, words, dim), torch.full((captions,), words)
    score = partial(maxsim, lengths=lengths)
    call = backward(score, v, s) if gradient else torch.no_grad()(partial(score, v, s))
    pairs, items = images * captions, images * regions * dim + captions * words * dim
    law = FLOAT * (blocks_of_maxsim.ELEMENTS_AT_ONCE + 3 * pairs + (4 * items + 5 * pairs * words if gradient else 0))
    assert peak_bytes(call, "cpu") < law


def test_attention_without_a_gradient_holds_some_images_at_once():
    images, locations, dim = 64, 196, 256
    keys, seen = torch.randn(images, locations, dim), torch.randn(images, locations, 8)
    query = torch.randn(images, 3, dim)
    step = torch.no_grad()(partial(attention_step, keys, seen, query, torch.randn(dim)))
    law = FLOAT * (1.1 * attention.ELEMENTS_IN_CACHE + 8 * images * 3 * locations + 4 * query.numel())
    assert peak_bytes(step, "cpu") < law
    plain = torch.no_grad()(partial(reference_attention_step, keys, seen, query, torch.randn(dim)))
    assert law < peak_bytes(plain, "cpu") / 4


def test_log_probabilities_hold_some_rows_beyond_the_scores_of_which_the_gradient_takes_the_place():
    words, vocabulary = 600, 10_000
    scores, target = torch.randn(words, vocabulary), torch.randint(0, vocabulary, (words,))
    law = FLOAT * (2 * words * vocabulary + 4 * log_prob.ELEMENTS_AT_ONCE)  # the copy of the leaf, and its gradient
    held = peak_bytes(backward(partial(target_log_probs, target=target), scores), "cpu")
    plain = peak_bytes(backward(partial(reference_target_log_probs, target=target), scores), "cpu")
    assert held < law < plain
