"""The losses of VSE++ against loops written from equations 5 and 6 and a matrix worked by hand; what a recipe takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from capbench.kernels.ranking_loss.reference import (
    dot_similarity,
    excluded_pairs,
    max_of_hinges,
    order_similarity,
    sum_of_hinges,
)
from reproductions.vsepp.objective import objective
from reproductions.vsepp.recipe import VSEPP


def loops(similarity, excluded, margin, over):
    """The equations, written as they are printed; `over` is sum or max."""
    total = 0.0
    for k in range(len(similarity)):
        captions = [margin - similarity[k][k] + similarity[k][c] for c in range(len(similarity)) if not excluded[k][c]]
        images = [margin - similarity[k][k] + similarity[i][k] for i in range(len(similarity)) if not excluded[i][k]]
        total += over([max(0.0, float(h)) for h in captions] or [0.0]) + over(
            [max(0.0, float(h)) for h in images] or [0.0]
        )
    return total


@pytest.mark.parametrize("pairs", [1, 2, 5, 17])
@pytest.mark.parametrize("images", ["distinct", "repeated"])
@pytest.mark.parametrize("negatives", [None, 1, 3])
def test_both_losses_equal_the_equations_written_as_loops(pairs, images, negatives):
    torch.manual_seed(pairs)
    ids = torch.arange(pairs) if images == "distinct" else torch.arange(pairs) % 4
    similarity = torch.randn(pairs, pairs, dtype=torch.float64)
    excluded = excluded_pairs(ids, negatives)
    for ours, over in ((sum_of_hinges, sum), (max_of_hinges, max)):
        value = ours(similarity, excluded, 0.2)
        assert float(value) == pytest.approx(loops(similarity.tolist(), excluded.tolist(), 0.2, over), abs=1e-12)


def test_the_losses_of_a_matrix_worked_by_hand():
    similarity = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.5, 0.4], [0.6, 0.7, 0.6]])
    excluded = excluded_pairs(torch.arange(3))
    # over captions: row 0: .1 (c1); row 1: .1 (c2); row 2: .2 (c0), .3 (c1)
    # over images: column 0: none; column 1: .5 (i0), .4 (i2); column 2: none (i1: .4 - .6 + .2 = 0)
    assert float(sum_of_hinges(similarity, excluded, 0.2)) == pytest.approx(0.1 + 0.1 + 0.2 + 0.3 + 0.5 + 0.4)
    assert float(max_of_hinges(similarity, excluded, 0.2)) == pytest.approx(0.1 + 0.1 + 0.3 + 0.5)


def test_hardest_negative_never_picks_a_caption_of_the_same_image():
    similarity = torch.full((4, 4), 5.0)
    assert float(max_of_hinges(similarity, excluded_pairs(torch.tensor([7, 7, 7, 7])), 0.2)) == 0


def test_on_its_plateau_the_max_of_hinges_is_twice_margin_times_batch():
    similarity = torch.full((128, 128), 0.3)
    assert float(max_of_hinges(similarity, excluded_pairs(torch.arange(128)), 0.2)) == pytest.approx(2 * 0.2 * 128)


def test_a_negative_set_of_n_leaves_each_query_n_negatives():
    for size in (1, 2, 5):
        free = ~excluded_pairs(torch.arange(8), size)
        assert free.sum(0).tolist() == [size] * 8
        assert free.sum(1).tolist() == [size] * 8


@pytest.mark.parametrize("loss", [sum_of_hinges, max_of_hinges])
def test_gradients_pass_gradcheck(loss):
    torch.manual_seed(0)
    similarity = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: loss(s, excluded_pairs(torch.arange(6)), 0.2), similarity)


def test_order_similarity_is_minus_the_norm_of_the_violation():
    images = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    captions = torch.tensor([[1.0, 1.0], [4.0, 6.0]])
    expected = torch.tensor([[0.0, -5.0], [-(2**0.5), -(52**0.5)]])
    torch.testing.assert_close(order_similarity(images, captions), expected, atol=1e-5, rtol=0)


def test_order_similarity_of_a_caption_below_its_image_has_a_finite_gradient():
    images = torch.ones(2, 3, requires_grad=True)
    order_similarity(images, torch.zeros(2, 3)).sum().backward()
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()


def test_dot_similarity_is_the_inner_product():
    torch.manual_seed(0)
    images, captions = torch.randn(3, 4), torch.randn(5, 4)
    torch.testing.assert_close(dot_similarity(images, captions), torch.einsum("id,cd->ic", images, captions))


def test_a_recipe_trains_with_the_sum_of_hinges_in_its_warm_up_and_then_with_its_own_loss():
    torch.manual_seed(0)
    images, captions, image_ids = torch.randn(9, 4), torch.randn(9, 4), torch.arange(9) // 2
    S, excluded = images @ captions.T, excluded_pairs(image_ids)  # noqa: N806
    recipe = replace(VSEPP, warmup=2, margin=0.3, same_image_negatives=False)
    for epoch, expected in ((0, sum_of_hinges), (1, sum_of_hinges), (2, max_of_hinges)):
        torch.testing.assert_close(
            objective(recipe, images, captions, image_ids, epoch), expected(S, excluded, 0.3), rtol=1e-5, atol=1e-5
        )


def test_a_recipe_may_take_the_order_similarity_and_few_negatives():
    torch.manual_seed(0)
    images, captions, image_ids = torch.randn(9, 4), torch.randn(9, 4), torch.arange(9) // 2
    recipe = replace(VSEPP, similarity="order", negatives=3, same_image_negatives=False)
    expected = max_of_hinges(order_similarity(images, captions), excluded_pairs(image_ids, 3), recipe.margin)
    assert torch.equal(objective(recipe, images, captions, image_ids, 0), expected)
    whole = max_of_hinges(order_similarity(images, captions), excluded_pairs(image_ids), recipe.margin)
    assert torch.equal(objective(replace(recipe, negatives=None), images, captions, image_ids, 0), whole)
    assert not torch.equal(whole, expected)
