"""The attention step against its equations in float64, forward and gradients, and as kernels."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import linear

from capbench.captioners.layers import AdditiveAttention, context
from capbench.kernels._triton import interpreted
from capbench.kernels.attention import attention_step, attention_weights
from capbench.kernels.attention import cpu as kernel
from capbench.kernels.attention.reference import reference_attention_step

SHAPES = [(1, 1, 1, 1, 1), (3, 7, 2, 5, 4), (2, 40, 3, 70, 65), (2, 3, 17, 6, 5)]  # image location beam attention dim

DEVICE = "cpu" if interpreted() else "cuda"  # of the kernels


def inputs(shape, dtype=torch.float64, device="cpu", seed=0):
    images, locations, beams, attention, dim = shape
    random = torch.Generator().manual_seed(seed)
    sizes = [(images, locations, attention), (images, locations, dim), (images, beams, attention), (attention,)]
    return [torch.randn(s, generator=random).to(device, dtype).requires_grad_() for s in sizes]


def by_hand(keys, annotations, query, v):
    """Context and weights of one beam of one image, number by number."""
    e = [sum(w * math.tanh(k + q) for w, k, q in zip(v, key, query, strict=True)) for key in keys]
    exponentials = [math.exp(score - max(e)) for score in e]
    alpha = [x / sum(exponentials) for x in exponentials]
    return [
        sum(a * row[d] for a, row in zip(alpha, annotations, strict=True)) for d in range(len(annotations[0]))
    ], alpha


def compare(actual, leaves, tolerance):
    """Values, and gradients of a random sum, against the reference in float64."""
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = reference_attention_step(*exact)
    random = torch.Generator().manual_seed(9)
    weights = [torch.randn(f.shape, generator=random).to(f.device) for f in actual]
    ours = torch.autograd.grad((actual[0] * weights[0]).sum() + (actual[1] * weights[1]).sum(), leaves)
    theirs = torch.autograd.grad((expected[0] * weights[0]).sum() + (expected[1] * weights[1]).sum(), exact)
    for mine, wanted in zip(
        [f.detach() for f in actual] + [*ours], [e.detach() for e in expected] + [*theirs], strict=True
    ):
        assert float((mine.double() - wanted).abs().max()) <= tolerance * (1 + float(wanted.abs().max()))
    for mine, leaf in zip(ours, leaves, strict=True):
        assert mine.dtype is leaf.dtype


@pytest.mark.parametrize("shape", SHAPES)
def test_the_step_is_that_of_the_equations(shape):
    leaves = inputs(shape)
    actual, weights = attention_step(*leaves)
    keys, annotations, query, v = (leaf.tolist() for leaf in leaves)
    for image in range(shape[0]):
        for beam in range(shape[2]):
            seen, alpha = by_hand(keys[image], annotations[image], query[image][beam], v)
            assert actual[image, beam].tolist() == pytest.approx(seen)
            assert weights[image, beam].tolist() == pytest.approx(alpha)
    compare((actual, weights), leaves, 1e-12)


def test_gradients_are_right_by_finite_differences():
    assert torch.autograd.gradcheck(attention_step, inputs((2, 4, 3, 5, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_close_on_the_cpu(dtype):
    leaves = inputs((3, 7, 2, 5, 4), dtype)
    actual = attention_step(*leaves)
    assert actual[0].dtype is dtype
    assert actual[1].dtype is torch.float32
    compare(actual, leaves, {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.01}[dtype])


@pytest.mark.parametrize("at_once", [1, 400, 2**23])
def test_images_taken_some_at_a_time_have_the_same_weights(at_once, monkeypatch):
    monkeypatch.setattr(kernel, "ELEMENTS_AT_ONCE", at_once)
    keys, annotations, query, v = inputs((5, 7, 2, 9, 4))
    with torch.no_grad():
        actual = attention_weights(keys, query, v)
    assert torch.allclose(actual, reference_attention_step(keys, annotations, query, v)[1])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("at_once", [1, 2**19])
def test_single_precision_without_a_gradient_is_as_exact_as_with_one(at_once, scale, monkeypatch):
    monkeypatch.setattr(kernel, "ELEMENTS_IN_CACHE", at_once)
    keys, annotations, query, v = (leaf.detach() for leaf in inputs((5, 7, 2, 64, 4), torch.float32))
    keys, query = scale * keys, scale * query
    exact = reference_attention_step(*(x.double() for x in (keys, annotations, query, v)))[1]
    with torch.no_grad():
        actual = attention_weights(keys, query, v)
    assert torch.allclose(actual.double(), exact, rtol=1e-5, atol=0)


def test_no_image_and_no_gradient_give_no_weights():
    keys, annotations, query, v = inputs((1, 7, 2, 9, 4))
    with torch.no_grad():
        actual, weights = attention_step(keys[:0], annotations[:0], query[:0], v)
    assert actual.shape == (0, 2, 4)
    assert weights.shape == (0, 2, 7)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_layer_trains_bit_for_bit_as_its_formula_in_torch(autocast):
    torch.manual_seed(0)
    layer, a = AdditiveAttention(12, 8, 16), torch.randn(6, 9, 12)

    def formula(keys, h):
        e = layer.v((keys[:, None] + layer.W_h(h)[:, :, None]).tanh()).squeeze(-1)
        return e.float().softmax(-1)

    def gradients(attend):
        keys, h, seen = layer.keys(a), torch.ones(6, 1, 8), []
        for _ in range(4):
            seen.append(context(attend(keys, h), a))
            h = h + seen[-1][..., :8].float()
        return torch.autograd.grad(torch.cat(seen, 1).float().square().sum(), list(layer.parameters()))

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, theirs = gradients(lambda keys, h: layer.step(keys, a, h)[1]), gradients(formula)
        seen, weights = layer.step(layer.keys(a), a, torch.ones(6, 1, 8))
        assert torch.equal(seen, context(weights, a))
    assert all(torch.equal(mine, wanted) for mine, wanted in zip(ours, theirs, strict=True))


def test_the_weight_of_a_linear_layer_serves_as_v():
    keys, _, query, v = inputs((2, 3, 2, 5, 4))
    expected = linear((keys[:, None] + query[:, :, None]).tanh(), v[None]).squeeze(-1).softmax(-1)
    assert torch.equal(attention_weights(keys, query, v[None]), expected)


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_step_and_gradients_are_those_of_the_equations(shape, dtype):
    leaves = inputs(shape, dtype, DEVICE)
    actual = attention_step(*leaves)
    assert actual[0].dtype is dtype
    assert actual[1].dtype is torch.float32
    compare(actual, leaves, {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.004}[dtype])


@pytest.mark.kernel
def test_kernel_takes_more_locations_than_one_softmax_block():
    leaves = inputs((1, 300, 2, 3, 4), torch.float32, DEVICE)
    compare(attention_step(*leaves), leaves, 1e-4)


@pytest.mark.kernel
def test_kernel_weights_alone_and_the_weight_of_a_linear_layer_have_their_gradients():
    keys, annotations, query, v = inputs((2, 5, 2, 6, 3), torch.float32, DEVICE)
    row = v.detach()[None].requires_grad_()
    alone, both = attention_weights(keys, query, row), attention_step(keys, annotations, query, v)[1]
    assert torch.allclose(alone, both, atol=1e-6)
    (ours,) = torch.autograd.grad(alone.square().sum(), row)
    (theirs,) = torch.autograd.grad(both.square().sum(), v)
    assert torch.allclose(ours[0], theirs, atol=1e-5)


@pytest.mark.kernel
def test_kernel_survives_large_scores_and_passes_on_nan():
    keys, annotations, query, v = (leaf.detach() for leaf in inputs((2, 5, 2, 6, 3), torch.float32, DEVICE))
    weights = attention_step(keys * 1e4, annotations, query, v * 1e4)[1]
    assert torch.allclose(weights.sum(-1), torch.ones_like(weights[..., 0]))
    keys[1, 2, 3] = torch.nan
    actual, weights = attention_step(keys, annotations, query, v)
    assert bool(weights[1].isnan().all())
    assert not bool(actual[0].isnan().any())
