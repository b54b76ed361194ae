"""Log probabilities of target words against float64, forward and gradient, and what becomes of the scores."""

from __future__ import annotations

import math

import pytest
import torch

from capbench.kernels._triton import interpreted
from capbench.kernels.log_prob import cpu, target_log_probs
from capbench.kernels.log_prob.reference import reference_target_log_probs

SHAPES = [(1, 1), (1, 7), (5, 2), (33, 130), (64, 1000)]
DEVICE = "cpu" if interpreted() else "cuda"  # of the kernels
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def inputs(shape, dtype, device="cpu"):
    random = torch.Generator().manual_seed(shape[1])
    scores = 3 * torch.randn(shape, generator=random)
    target = torch.randint(0, shape[1], shape[:1], generator=random)
    return scores.to(device, dtype), target.to(device), torch.randn(shape[0], generator=random).to(device)


def compare(shape, dtype, device="cpu"):
    """Values and gradients of a sum with random weights; the reference sees the rounded scores in float64."""
    scores, target, weight = inputs(shape, dtype, device)
    made = scores.clone().requires_grad_()
    actual = target_log_probs(made * 1, target)
    (gradient,) = torch.autograd.grad((actual * weight).sum(), made)
    exact = scores.double().requires_grad_()
    expected = reference_target_log_probs(exact, target)
    (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), exact)
    assert actual.dtype is torch.promote_types(dtype, torch.float32)
    assert gradient.dtype is dtype
    exactness = min(TOLERANCE[dtype], 1e-5)  # the scores are rounded, what follows is not
    torch.testing.assert_close(actual.double(), expected, rtol=exactness, atol=exactness)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("at_once", [1, 300, 2**19])
def test_values_and_gradients_are_those_of_float64(shape, dtype, at_once, monkeypatch):
    monkeypatch.setattr(cpu, "ELEMENTS_AT_ONCE", at_once)
    compare(shape, dtype)


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES[:4])
@pytest.mark.parametrize("width", [64, 4096])
def test_kernel_values_and_gradients_are_those_of_float64(shape, dtype, width, monkeypatch):
    monkeypatch.setattr("capbench.kernels.log_prob.triton.WIDEST", width)
    compare(shape, dtype, DEVICE)


def test_a_hand_worked_example():
    """Of e^0, e^0 and e^(log 2) the last has p = 1/2."""
    scores = torch.tensor([[0.0, 0.0, math.log(2)]], requires_grad=True)
    actual = target_log_probs(scores * 1, torch.tensor([2]))
    assert float(actual.detach()) == pytest.approx(math.log(0.5))
    (gradient,) = torch.autograd.grad(actual.sum(), scores)
    assert gradient[0].tolist() == pytest.approx([-0.25, -0.25, 0.5])


def test_gradients_pass_gradcheck():
    scores, target, _ = inputs((5, 4), torch.float64)
    assert torch.autograd.gradcheck(lambda x: target_log_probs(x, target), scores.requires_grad_())


def test_the_gradient_lies_where_the_scores_were():
    leaf = torch.randn(4, 9, requires_grad=True)
    scores = leaf * 1
    target_log_probs(scores, torch.arange(4)).sum().backward()
    assert leaf.grad is not None
    assert torch.equal(scores, leaf.grad)


@pytest.mark.parametrize("view", [False, True])
def test_a_leaf_keeps_its_scores(view):
    leaf = torch.randn(2, 2, 9, requires_grad=True) if view else torch.randn(4, 9, requires_grad=True)
    before = leaf.detach().clone()
    target_log_probs(leaf.flatten(0, 1) if view else leaf, torch.arange(4)).sum().backward()
    assert torch.equal(leaf, before)
    assert leaf.grad is not None


def test_another_operation_that_needs_the_scores_is_not_deceived():
    """Autograd computes the gradient of the exponential from its result, and finds it overwritten."""
    scores = torch.randn(4, 9, requires_grad=True).exp()
    loss = target_log_probs(scores, torch.arange(4)).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_second_backward_pass_is_refused():
    scores = torch.randn(4, 9, requires_grad=True) * 1
    loss = target_log_probs(scores, torch.arange(4)).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.kernel
def test_kernel_hands_on_nan_and_lets_autograd_know_of_the_overwriting():
    leaf = torch.randn(4, 9, device=DEVICE)
    leaf[2, 3] = torch.nan
    scores = leaf.requires_grad_() * 1
    actual = target_log_probs(scores, torch.arange(4, device=DEVICE))
    assert actual.isnan().tolist() == [False, False, True, False]
    actual.sum().backward(retain_graph=True)
    assert torch.equal(scores.isnan().any(1), actual.isnan())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        actual.sum().backward()
