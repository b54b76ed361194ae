"""maxsim against its equation in float64, forward and gradient, over odd shapes, ragged lengths and ties."""

from __future__ import annotations

import pytest
import torch

from capbench.errors import CapbenchError
from capbench.kernels import maxsim as kernel
from capbench.kernels.maxsim import maxsim, reference_maxsim

SHAPES = [(1, 1, 1, 1, 1), (3, 20, 4, 7, 16), (2, 5, 6, 1, 3), (7, 19, 5, 16, 33)]


def inputs(images, regions, captions, words, dim, seed=0):
    random = torch.Generator().manual_seed(seed)
    v = torch.randn(images, regions, dim, generator=random, dtype=torch.float64)
    s = torch.randn(captions, words, dim, generator=random, dtype=torch.float64)
    return v, s, torch.randint(0, words + 1, (captions,), generator=random)


def by_hand(v, s, lengths, form):
    rows = []
    for image in v:
        row = []
        for caption, length in zip(s, lengths.tolist(), strict=True):
            total = 0.0
            for word in caption[:length]:
                products = [float(region @ word) for region in image]
                total += max(products) if form == "max" else sum(max(0.0, p) for p in products)
            row.append(total)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("form", ["max", "sum"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("at_once", [1, 50, 2**23])
def test_similarities_and_gradients_are_those_of_the_equation(shape, form, at_once, monkeypatch):
    monkeypatch.setattr(kernel, "ELEMENTS_AT_ONCE", at_once)
    v, s, lengths = inputs(*shape)
    expected = by_hand(v, s, lengths, form)
    assert torch.allclose(reference_maxsim(v, s, lengths, form), expected)
    gradients = []
    weight = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for function in (maxsim, reference_maxsim):
        leaves = v.clone().requires_grad_(), s.clone().requires_grad_()
        found = function(leaves[0], leaves[1], lengths, form)
        assert torch.allclose(found, expected)
        gradients.append(torch.autograd.grad((found * weight).sum(), leaves))
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs)


def test_the_gradient_is_right_by_finite_differences():
    v, s, lengths = inputs(2, 3, 3, 4, 5, seed=4)
    for form in ("max", "sum"):
        assert torch.autograd.gradcheck(
            lambda a, b, form=form: maxsim(a, b, lengths, form), (v.requires_grad_(), s.requires_grad_())
        )


def test_what_lies_beyond_a_caption_does_not_count():
    v, s, lengths = inputs(3, 4, 5, 6, 8)
    before = maxsim(v, s, lengths)
    for caption, length in enumerate(lengths.tolist()):
        s[caption, length:] = 1e9
    assert torch.equal(maxsim(v, s, lengths), before)


def test_of_equal_regions_the_first_has_the_gradient():
    v = torch.ones(1, 3, 2, requires_grad=True)
    maxsim(v, torch.ones(1, 1, 2), torch.tensor([1])).sum().backward()
    assert v.grad is not None
    assert v.grad[0].tolist() == [[1, 1], [0, 0], [0, 0]]


def test_single_precision_is_close():
    v, s, lengths = inputs(4, 20, 6, 9, 64)
    found = maxsim(v.float(), s.float(), lengths)
    assert torch.allclose(found.double(), by_hand(v, s, lengths, "max"), rtol=1e-4, atol=1e-3)


def test_bad_arguments_are_named():
    v, s, lengths = inputs(2, 3, 3, 4, 5)
    with pytest.raises(CapbenchError, match=r"lengths must lie in 0\.\.4"):
        maxsim(v, s, lengths + 5)
    with pytest.raises(CapbenchError, match="regions"):
        maxsim(v[:, :0], s, lengths)
