"""ranking_loss against equations 5 and 6 as loops in float64: dense, streamed, and as kernels."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from capbench.base.errors import CapbenchError
from capbench.kernels._triton import interpreted
from capbench.kernels.ranking_loss import cpu as kernel
from capbench.kernels.ranking_loss import ranking_loss
from capbench.kernels.ranking_loss.cpu import DENSE_UP_TO
from capbench.kernels.ranking_loss.reference import reference_ranking_loss

MARGIN = 0.2
WAYS = [(loss, similarity) for loss in ("max_of_hinges", "sum_of_hinges") for similarity in ("dot", "order")]
SHAPES = [(1, 3), (2, 1), (5, 4), (17, 7), (40, 33)]
DEVICE = "cpu" if interpreted() else "cuda"


def inputs(pairs, dim, seed=0, repeated=True):
    """Unit vectors in float64, and image ids of which some have several captions."""
    random = torch.Generator().manual_seed(seed + pairs)
    images, captions = (torch.randn(pairs, dim, generator=random, dtype=torch.float64) for _ in range(2))
    image_ids = (
        torch.randint(0, max(1, 2 * pairs // 3), (pairs,), generator=random) if repeated else torch.arange(pairs)
    )
    return torch.nn.functional.normalize(images, dim=1), torch.nn.functional.normalize(captions, dim=1), image_ids


def loops(batch, loss, similarity):
    """The value and both gradients, written from the equations one hinge at a time."""
    images, captions, image_ids = batch[0].double().numpy(), batch[1].double().numpy(), batch[2].numpy()
    d_images, d_captions, total = np.zeros_like(images), np.zeros_like(captions), 0.0

    def score(i, c):
        if similarity == "dot":
            return images[i] @ captions[c]
        return -np.sqrt((np.maximum(captions[c] - images[i], 0) ** 2).sum() + 1e-12)

    def push(i, c, weight):
        if similarity == "dot":
            d_images[i] += weight * captions[c]
            d_captions[c] += weight * images[i]
        else:
            down = np.maximum(captions[c] - images[i], 0) / score(i, c)
            d_images[i] -= weight * down
            d_captions[c] += weight * down

    for k in range(len(images)):
        for wrong in ([(k, c) for c in range(len(images))], [(i, k) for i in range(len(images))]):
            hinges = [(MARGIN - score(k, k) + score(i, c), i, c) for i, c in wrong if image_ids[i] != image_ids[c]]
            violated = [hinge for hinge in hinges if hinge[0] > 0]
            for hinge, i, c in [max(violated)] if violated and loss == "max_of_hinges" else violated:
                total += hinge
                push(i, c, 1)
                push(k, k, -1)
    return torch.tensor(total), torch.from_numpy(d_images), torch.from_numpy(d_captions)


def value_and_gradients(batch, loss, similarity="dot", function=ranking_loss, margin=MARGIN):
    images, captions, image_ids = batch[0].detach().requires_grad_(), batch[1].detach().requires_grad_(), batch[2]
    value = function(images, captions, image_ids, margin, loss, similarity)
    return value.detach(), *torch.autograd.grad(value, (images, captions))


def assert_close(actual, expected, rtol=1e-9, atol=1e-9):
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours.double().cpu(), theirs.double().cpu(), rtol=rtol, atol=atol)


@pytest.fixture(params=["dense", "one row at a time", "three rows at a time", "in one block"])
def form(request, monkeypatch):
    """Every form that a tensor on the CPU can take, whatever the size of the batch."""
    rows = {"one row at a time": 1, "three rows at a time": 3, "in one block": 1000}.get(request.param)
    if rows:
        monkeypatch.setattr(kernel, "DENSE_UP_TO", dict.fromkeys(WAYS, 0))
        monkeypatch.setattr(kernel, "_blocks", lambda x, _: [slice(i, i + rows) for i in range(0, len(x), rows)])


@pytest.mark.parametrize(("loss", "similarity"), WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients_are_those_of_the_equations(shape, loss, similarity, form):
    batch = inputs(*shape)
    expected = loops(batch, loss, similarity)
    assert_close(value_and_gradients(batch, loss, similarity), expected)


@pytest.mark.parametrize(("loss", "similarity"), WAYS)
def test_the_gradient_is_right_by_finite_differences(loss, similarity, form):
    images, captions, image_ids = inputs(6, 4, seed=3)
    assert torch.autograd.gradcheck(
        lambda a, b: ranking_loss(a, b, image_ids, MARGIN, loss, similarity),
        (images.requires_grad_(), captions.requires_grad_()),
    )


@pytest.mark.parametrize("loss", ["max_of_hinges", "sum_of_hinges"])
def test_a_small_batch_of_the_order_has_the_bits_of_the_reference(loss):
    images, captions, image_ids = inputs(128, 64)
    batch = images.float(), captions.float(), image_ids
    actual = value_and_gradients(batch, loss, "order")
    expected = value_and_gradients(batch, loss, "order", reference_ranking_loss)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(actual, expected, strict=True))


@pytest.mark.parametrize("loss", ["max_of_hinges", "sum_of_hinges"])
def test_a_batch_beyond_the_dense_limit_agrees_with_the_reference(loss):
    images, captions, image_ids = inputs(DENSE_UP_TO[loss, "dot"] + 37, 24)
    batch = images.float(), captions.float(), image_ids
    actual = value_and_gradients(batch, loss)
    expected = value_and_gradients((images, captions, image_ids), loss, function=reference_ranking_loss)
    assert_close(actual, expected, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize(("loss", "similarity"), WAYS)
def test_the_value_is_the_same_where_no_gradient_is_asked_for(loss, similarity, form):
    batch = inputs(17, 7)
    images, captions, image_ids = batch
    with torch.no_grad():
        actual = ranking_loss(images, captions, image_ids, MARGIN, loss, similarity)
    assert_close([actual], loops(batch, loss, similarity)[:1])


@pytest.mark.parametrize("loss", ["max_of_hinges", "sum_of_hinges"])
def test_a_batch_of_one_image_has_no_loss_and_no_gradient(loss, form):
    images, captions, _ = inputs(7, 3)
    for part in value_and_gradients((images, captions, torch.zeros(7, dtype=torch.int64)), loss):
        assert not part.any()


@pytest.mark.parametrize("loss", ["max_of_hinges", "sum_of_hinges"])
def test_without_a_violation_there_is_no_gradient(loss, form):
    for part in value_and_gradients((torch.eye(6), torch.eye(6), torch.arange(6)), loss):
        assert not part.any()


def test_equal_embeddings_are_the_plateau_of_both_losses(form):
    batch = torch.ones(9, 2), torch.ones(9, 2), torch.arange(9)
    assert float(ranking_loss(*batch, MARGIN, "max_of_hinges")) == pytest.approx(2 * MARGIN * 9)
    assert float(ranking_loss(*batch, MARGIN, "sum_of_hinges")) == pytest.approx(2 * MARGIN * 9 * 8)


def first_of_ties(device):
    """Captions 1 and 2 are equally wrong for image 0, and images 1 and 2 for caption 0; nothing else is violated."""
    images = torch.tensor([[1.0, 0, 0], [0.9, 3, 0], [0.9, 0, 3]], device=device)
    captions = torch.tensor([[1.0, 0, 0], [0.9, 3, 0], [0.9, 0, 3]], device=device)
    return value_and_gradients((images, captions, torch.arange(3, device=device)), "max_of_hinges")


@pytest.mark.parametrize(("loss", "similarity"), [("max_of_hinges", "dot"), ("sum_of_hinges", "dot")])
def test_a_hinge_of_exactly_zero_has_no_gradient(loss, similarity, form):
    batch = torch.ones(21, 8), torch.ones(21, 8), torch.arange(21)
    for part in value_and_gradients(batch, loss, similarity, margin=0.0):
        assert not part.any()


def test_of_equally_hard_negatives_the_first_has_the_gradient(form):
    _, d_images, d_captions = first_of_ties("cpu")
    # image 0: + caption 1 - caption 0 for its own hinge, - caption 0 for that of caption 0; image 1: + caption 0
    assert d_images.tolist() == pytest.approx(np.array([[-1.1, 3, 0], [1, 0, 0], [0, 0, 0]]))
    assert d_captions.tolist() == pytest.approx(np.array([[-1.1, 3, 0], [1, 0, 0], [0, 0, 0]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("loss", "similarity"), WAYS)
def test_half_precision_is_multiplied_exactly(dtype, loss, similarity, form):
    images, captions, image_ids = inputs(12, 8)
    batch = images.to(dtype), captions.to(dtype), image_ids
    actual = value_and_gradients(batch, loss, similarity)
    expected = loops(batch, loss, similarity)
    assert actual[0].dtype is torch.float32
    assert actual[1].dtype is dtype
    assert_close(actual[:1], expected[:1], rtol=1e-5, atol=1e-5)
    assert_close(actual[1:], expected[1:], rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("loss", ["max_of_hinges", "sum_of_hinges"])
def test_nan_is_handed_on(loss, form):
    images, captions, image_ids = inputs(8, 3, repeated=False)
    captions[5, 1] = torch.nan
    assert ranking_loss(images, captions, image_ids, MARGIN, loss).isnan()


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made within it held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, list[int]] = {}  # address of a storage to its size, and its tensors that live
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, torch.Tensor):
                continue
            address, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
            if address in self.live or (address not in given and size):
                entry = self.live.setdefault(address, [size, 0])
                entry[1] += 1
                weakref.finalize(tensor, self.release, address)
        self.peak = max(self.peak, sum(size for size, _ in self.live.values()))
        return result

    def release(self, address: int) -> None:
        self.live[address][1] -= 1
        if not self.live[address][1]:
            del self.live[address]


def peak(function, pairs, dim, loss):
    images, captions = torch.randn(pairs, dim, requires_grad=True), torch.randn(pairs, dim, requires_grad=True)
    with PeakBytes() as memory:
        function(images, captions, torch.arange(pairs), MARGIN, loss).backward()
    return memory.peak


def test_a_large_batch_of_hardest_negatives_takes_a_quarter_of_the_dense_memory():
    dense = peak(reference_ranking_loss, 4096, 1024, "max_of_hinges")
    assert dense > 4 * 4096**2 * 4
    assert peak(ranking_loss, 4096, 1024, "max_of_hinges") < dense / 4


@pytest.mark.parametrize("loss", ["max_of_hinges", "sum_of_hinges"])
def test_the_memory_of_a_large_batch_is_not_that_of_its_matrix(loss):
    assert peak(ranking_loss, 4096, 32, loss) < 4096**2 * 4


def test_bad_arguments_are_named():
    images, captions, image_ids = inputs(4, 3)
    with pytest.raises(CapbenchError, match="pair must be at least 1"):
        ranking_loss(images[:0], captions[:0], image_ids[:0], MARGIN, "sum_of_hinges")
    with pytest.raises(CapbenchError, match="convert them to one type"):
        ranking_loss(images.float(), captions, image_ids, MARGIN, "sum_of_hinges")


def on_device(batch, dtype=torch.float32):
    return batch[0].to(DEVICE, dtype), batch[1].to(DEVICE, dtype), batch[2].to(DEVICE)


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("loss", "similarity"), WAYS)
@pytest.mark.parametrize("shape", [*SHAPES, (37, 130)])
def test_kernels_equal_the_equations(shape, loss, similarity, dtype):
    images, captions, image_ids = inputs(*shape)
    expected = loops((images.to(dtype), captions.to(dtype), image_ids), loss, similarity)
    actual = value_and_gradients(on_device((images, captions, image_ids), dtype), loss, similarity)
    assert actual[0].dtype is torch.float32
    assert actual[1].dtype is dtype
    assert_close(actual[:1], expected[:1], rtol=1e-5, atol=1e-5)
    precision = 1e-5 if dtype is torch.float32 else 2**-7
    assert_close(actual[1:], expected[1:], rtol=precision, atol=precision)


@pytest.mark.kernel
@pytest.mark.parametrize(("loss", "similarity"), WAYS)
def test_kernels_reduce_over_several_blocks_of_rows(loss, similarity, monkeypatch):
    from capbench.kernels.ranking_loss import triton as ranking_loss_triton

    monkeypatch.setattr(ranking_loss_triton, "PARTIAL_BYTES", 1)
    monkeypatch.setattr(ranking_loss_triton, "WEIGHT_BYTES", 1)
    batch = inputs(69, 9)
    actual = value_and_gradients(on_device(batch), loss, similarity)
    expected = value_and_gradients(batch, loss, similarity, reference_ranking_loss)
    assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.kernel
@pytest.mark.parametrize("loss", ["max_of_hinges", "sum_of_hinges"])
def test_kernels_agree_with_the_tile_of_a_large_batch(loss, monkeypatch):
    from capbench.kernels.ranking_loss import triton as ranking_loss_triton

    monkeypatch.setattr(ranking_loss_triton, "WIDE_FROM", 1)
    batch = inputs(150, 9)
    assert ranking_loss_triton.tile_of(batch[0], False)["block"] == 128
    actual = value_and_gradients(on_device(batch), loss)
    expected = value_and_gradients(batch, loss, function=reference_ranking_loss)
    assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.kernel
@pytest.mark.parametrize("loss", ["max_of_hinges", "sum_of_hinges"])
@pytest.mark.parametrize("block", [16, 32, 64])
def test_kernels_of_the_order_agree_whatever_the_tile(block, loss, monkeypatch):
    from capbench.kernels.ranking_loss import triton as ranking_loss_triton

    monkeypatch.setattr(ranking_loss_triton, "ORDER_BLOCKS", (block,))
    batch = inputs(67, 21)
    assert ranking_loss_triton.tile_of(batch[0], True)["block"] == block
    actual = value_and_gradients(on_device(batch), loss, "order")
    expected = value_and_gradients(batch, loss, "order", reference_ranking_loss)
    assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.kernel
@pytest.mark.parametrize("pairs", [37, pytest.param(5000, marks=pytest.mark.skipif(interpreted(), reason="slow"))])
@pytest.mark.parametrize(("loss", "similarity"), WAYS)
def test_kernels_give_the_same_bits_twice(pairs, loss, similarity):
    batch = on_device(inputs(pairs, 48))
    first, again = (value_and_gradients(batch, loss, similarity) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.kernel
def test_kernels_give_the_gradient_to_the_first_of_ties():
    _, d_images, d_captions = first_of_ties(DEVICE)
    assert d_images.tolist() == pytest.approx(np.array([[-1.1, 3, 0], [1, 0, 0], [0, 0, 0]]))
    assert d_captions.tolist() == pytest.approx(np.array([[-1.1, 3, 0], [1, 0, 0], [0, 0, 0]]))


@pytest.mark.kernel
def test_kernels_of_the_order_give_the_gradient_to_the_first_of_ties():
    """Every caption lies (3, 4) above every image, so that each hinge is the margin and each slope (0.6, 0.8).

    Image 0 and caption 0 are chosen by both others and choose one: 3 slopes, less 2 as a match. Pair 1 is chosen once,
    pair 2 never.
    """
    batch = torch.zeros(3, 2), torch.tensor([[3.0, 4.0]] * 3), torch.arange(3)
    loss, d_images, d_captions = value_and_gradients(on_device(batch), "max_of_hinges", "order")
    assert float(loss) == pytest.approx(6 * MARGIN)
    assert d_images.tolist() == pytest.approx(np.array([[0.6, 0.8], [0, 0], [-0.6, -0.8]]))
    assert d_captions.tolist() == pytest.approx(np.array([[-0.6, -0.8], [0, 0], [0.6, 0.8]]))


@pytest.mark.kernel
@pytest.mark.parametrize(("loss", "similarity"), WAYS)
def test_kernels_find_no_violation_of_a_margin_of_zero_among_equals(loss, similarity):
    images, captions, _ = inputs(1, 37)
    batch = on_device((images.expand(21, -1), captions.expand(21, -1), torch.arange(21)))
    for part in value_and_gradients(batch, loss, similarity, margin=0.0):
        assert not part.any()


@pytest.mark.kernel
@pytest.mark.parametrize(("loss", "similarity"), WAYS)
def test_kernels_add_up_a_hub_that_all_choose(loss, similarity):
    images, captions, image_ids = inputs(50, 6, repeated=False)
    images[7] = captions.sum(0) if similarity == "dot" else captions.amax(0)
    expected = loops((images.float(), captions.float(), image_ids), loss, similarity)
    actual = value_and_gradients(on_device((images, captions, image_ids)), loss, similarity)
    assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.kernel
@pytest.mark.parametrize(("loss", "similarity"), WAYS)
def test_kernels_hand_on_nan_and_find_nothing_in_a_batch_of_one_image(loss, similarity):
    images, captions, image_ids = inputs(8, 3, repeated=False)
    for part in value_and_gradients(on_device((images, captions, torch.zeros_like(image_ids))), loss, similarity):
        assert not part.any()
    captions[5, 1] = torch.nan
    loss, d_images, _ = value_and_gradients(on_device((images, captions, image_ids)), loss, similarity)
    assert loss.isnan()
    assert d_images[5].isnan().any()


@pytest.mark.kernel
def test_kernels_of_the_order_are_not_narrowed_by_autocast():
    images, captions, image_ids = on_device(inputs(9, 5))
    plain = ranking_loss(images, captions, image_ids, MARGIN, "sum_of_hinges", "order")
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(ranking_loss(images, captions, image_ids, MARGIN, "sum_of_hinges", "order"), plain)
