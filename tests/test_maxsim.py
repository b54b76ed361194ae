"""maxsim against its equation in float64, forward and gradient, over odd shapes, ragged lengths and ties."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from capbench.base.errors import CapbenchError
from capbench.kernels._triton import interpreted
from capbench.kernels.maxsim import cpu as kernel
from capbench.kernels.maxsim import maxsim
from capbench.kernels.maxsim.reference import reference_maxsim

SHAPES = [(1, 1, 1, 1, 1), (3, 20, 4, 7, 16), (2, 5, 6, 1, 3), (7, 19, 5, 16, 33)]
KERNEL_SHAPES = [(1, 1, 1, 1, 1), (3, 20, 4, 7, 16), (35, 3, 6, 9, 70), (2, 35, 4, 5, 17)]

DEVICE = "cpu" if interpreted() else "cuda"  # of the kernels


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
        actual = function(leaves[0], leaves[1], lengths, form)
        assert torch.allclose(actual, expected)
        gradients.append(torch.autograd.grad((actual * weight).sum(), leaves))
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs)


@pytest.mark.parametrize("form", ["max", "sum"])
def test_several_tiles_of_images_and_words_give_the_same(form, monkeypatch):
    monkeypatch.setattr(kernel, "ELEMENTS_AT_ONCE", 300)
    monkeypatch.setattr(kernel, "WIDE", 8)
    v, s, lengths = inputs(5, 9, 6, 7, 4)
    assert torch.allclose(maxsim(v, s, lengths, form), by_hand(v, s, lengths, form))
    leaves = v.requires_grad_(), s.requires_grad_()
    ours, theirs = (
        torch.autograd.grad(f(*leaves, lengths, form).square().sum(), leaves) for f in (maxsim, reference_maxsim)
    )
    assert all(torch.allclose(mine, wanted) for mine, wanted in zip(ours, theirs, strict=True))


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
    actual = maxsim(v.float(), s.float(), lengths)
    assert torch.allclose(actual.double(), by_hand(v, s, lengths, "max"), rtol=1e-4, atol=1e-3)


def test_bad_arguments_are_named():
    v, s, lengths = inputs(2, 3, 3, 4, 5)
    with pytest.raises(CapbenchError, match=r"lengths must lie in 0\.\.4"):
        maxsim(v, s, lengths + 5)
    with pytest.raises(CapbenchError, match="regions"):
        maxsim(v[:, :0], s, lengths)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return made


@pytest.mark.parametrize("form", ["max", "sum"])
def test_a_batch_of_100_never_holds_the_product_of_all_regions_and_words(form):
    v, s, _ = inputs(100, 20, 100, 12, 8)
    v, s = v.float().requires_grad_(), s.float().requires_grad_()
    with Largest() as largest:
        maxsim(v, s, torch.full((100,), 12), form).sum().backward()
    assert largest.elements <= kernel.ELEMENTS_AT_ONCE < 100 * 20 * 100 * 12


@pytest.mark.parametrize("form", ["max", "sum"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype, form):
    v, s, lengths = inputs(4, 20, 6, 9, 64)
    actual = maxsim(v.to(dtype), s.to(dtype), lengths, form)
    assert actual.dtype is torch.float32
    assert torch.allclose(actual.double(), by_hand(v, s, lengths, form), rtol=0.02, atol=0.5)


def test_under_autocast_gradients_have_the_type_of_their_inputs():
    v, s, lengths = inputs(4, 20, 6, 9, 64)
    leaves = v.float().requires_grad_(), s.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        actual = maxsim(*leaves, lengths, "sum")
    assert actual.dtype is torch.float32
    ours = torch.autograd.grad(actual.sum(), leaves)
    theirs = torch.autograd.grad(reference_maxsim(*leaves, lengths, "sum").sum(), leaves)
    for mine, exact in zip(ours, theirs, strict=True):
        assert mine.dtype is torch.float32
        assert float((mine - exact).norm() / exact.norm()) < 0.1


@pytest.mark.kernel
@pytest.mark.parametrize("form", ["max", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", KERNEL_SHAPES)
def test_kernel_similarities_and_gradients_are_those_of_the_equation(shape, dtype, form):
    v, s, lengths = inputs(*shape)
    lengths[0] = shape[3]
    v, s = (tensor.to(DEVICE, dtype).requires_grad_() for tensor in (v, s))
    exact = v.detach().double().requires_grad_(), s.detach().double().requires_grad_()
    actual, expected = maxsim(v, s, lengths, form), reference_maxsim(*exact, lengths, form)
    assert actual.dtype is torch.float32
    assert torch.allclose(actual.double(), expected, rtol=1e-4, atol=1e-4)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    ours = torch.autograd.grad((actual * weight).sum(), (v, s))
    theirs = torch.autograd.grad((expected * weight).sum(), exact)
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.003}[dtype]
    for mine, wanted in zip(ours, theirs, strict=True):
        assert mine.dtype is dtype
        assert float((mine.double() - wanted).abs().max()) <= tolerance * (1 + float(wanted.abs().max()))


@pytest.mark.kernel
@pytest.mark.parametrize("form", ["max", "sum"])
def test_kernel_with_large_blocks_agrees_with_small_ones(form, monkeypatch):
    from capbench.kernels.maxsim import triton as maxsim_triton

    v, s, lengths = inputs(70, 3, 30, 6, 20)
    v, s = (tensor.to(DEVICE, torch.float32).requires_grad_() for tensor in (v, s))
    results = []
    for start in (1, 10**9):
        monkeypatch.setattr(maxsim_triton, "LARGE_FROM", start)
        actual = maxsim(v, s, lengths, form)
        results.append((actual, *torch.autograd.grad(actual.square().sum(), (v, s))))
    for large, small in zip(*results, strict=True):
        assert torch.allclose(large, small, rtol=1e-4, atol=1e-3)


@pytest.mark.kernel
def test_kernel_gives_ties_to_the_first_region_and_keeps_nan_and_nothing_from_beyond_a_caption():
    v = torch.ones(1, 3, 2, device=DEVICE, requires_grad=True)
    maxsim(v, torch.ones(1, 1, 2, device=DEVICE), torch.tensor([1])).sum().backward()
    assert v.grad is not None
    assert v.grad[0].tolist() == [[1, 1], [0, 0], [0, 0]]
    words = torch.ones(2, 2, 2, device=DEVICE)
    words[:, 1] = torch.nan
    actual = maxsim(v, words, torch.tensor([1, 2]))
    assert actual[0, 0] == 2
    assert bool(actual[0, 1].isnan())
    assert maxsim(v, words, torch.tensor([0, 0])).tolist() == [[0, 0]]
    v.grad = None
    maxsim(v, words[:, :0], torch.tensor([0, 0])).sum().backward()
    assert v.grad is not None
    assert not v.grad.any()


@pytest.mark.kernel
def test_kernel_is_deterministic():
    v, s, lengths = (tensor.to(DEVICE) for tensor in inputs(40, 5, 9, 8, 33))
    v, s = v.float().requires_grad_(), s.float().requires_grad_()
    first, second = (torch.autograd.grad(maxsim(v, s, lengths).square().sum(), (v, s)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("images", "captions"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_to_score_gives_nothing(images, captions):
    regions, words = torch.randn(images, 4, 5), torch.randn(captions, 3, 5)
    assert maxsim(regions, words, torch.full((captions,), 3)).shape == (images, captions)
