"""Ranks against brute force, the published protocols, and memory that runs out."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from inspect import unwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from capbench.base.errors import CapbenchError
from capbench.kernels.ranks.cpu import CPU_TILE
from capbench.kernels.ranks.reference import reference_ranks
from capbench.metrics import retrieval
from capbench.metrics.retrieval import (
    Ranks,
    embedding_ranks,
    evaluate_protocol,
    match_ranks,
    retrieval_metrics,
)
from capbench.timing.measure import peak_bytes


def brute_force(similarity: np.ndarray, image_of_caption: np.ndarray) -> tuple[list[int], list[int]]:
    images, captions = similarity.shape
    by_image = [
        sum(
            similarity[i, c] >= max(similarity[i, image_of_caption == i])
            for c in range(captions)
            if image_of_caption[c] != i
        )
        for i in range(images)
    ]
    by_caption = [
        sum(similarity[i, c] >= similarity[image_of_caption[c], c] for i in range(images) if i != image_of_caption[c])
        for c in range(captions)
    ]
    return by_image, by_caption


def uneven_captions(images: int, extra: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    image_of_caption = np.concatenate([np.arange(images), random.integers(0, images, extra)])
    random.shuffle(image_of_caption)
    return image_of_caption


def five_each(images: int) -> Tensor:
    return torch.arange(images).repeat_interleave(5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 30), st.integers(0, 10**6), st.integers(1, 6))
def test_ranks_equal_brute_force_with_ties_and_uneven_captions(images, extra, seed, levels):
    image_of_caption = uneven_captions(images, extra, seed)
    random = np.random.default_rng(seed + 1)
    similarity = random.integers(-levels, levels, (images, len(image_of_caption))).astype(np.float32)
    by_image, by_caption = brute_force(similarity, image_of_caption)
    defined = reference_ranks(torch.from_numpy(similarity), torch.from_numpy(image_of_caption))
    assert [side.tolist() for side in defined] == [by_image, by_caption]
    ranks = match_ranks(similarity, image_of_caption)
    assert ranks.image_to_caption.tolist() == by_image
    assert ranks.caption_to_image.tolist() == by_caption


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10), st.integers(0, 20), st.integers(0, 10**6), st.none() | st.integers(1, 9))
def test_ranks_by_tiles_equal_a_float64_oracle(images, extra, seed, chunk):
    image_of_caption = uneven_captions(images, extra, seed)
    random = np.random.default_rng(seed)
    left, right = random.integers(-3, 4, (images, 5)), random.integers(-3, 4, (len(image_of_caption), 5))
    by_image, by_caption = brute_force(left.astype(np.float64) @ right.T, image_of_caption)
    tensors = torch.from_numpy(left).float(), torch.from_numpy(right).float(), torch.from_numpy(image_of_caption)
    ranks = embedding_ranks(*tensors, "dot", chunk)
    assert ranks.image_to_caption.tolist() == by_image
    assert ranks.caption_to_image.tolist() == by_caption


def test_a_hand_worked_example():
    similarity = torch.tensor([[0.9, 0.2, 0.95], [0.1, 0.3, 0.8]])
    ranks = match_ranks(similarity, torch.tensor([0, 0, 1]))
    assert ranks.image_to_caption.tolist() == [1, 0]
    assert ranks.caption_to_image.tolist() == [0, 1, 1]


@pytest.mark.fault("constant or tied similarities")
def test_constant_similarities_have_no_hit_at_all():
    metrics = retrieval_metrics(match_ranks(torch.zeros(20, 100), five_each(20)))
    assert metrics["rsum"] == 0.0
    assert metrics["image_to_caption_median_rank"] == 96.0
    assert metrics["caption_to_image_median_rank"] == 20.0


def test_a_perfect_model_has_every_hit():
    metrics = retrieval_metrics(embedding_ranks(torch.eye(12), torch.eye(12)[five_each(12)], five_each(12)))
    assert metrics["rsum"] == 600.0
    assert metrics["caption_to_image_mean_rank"] == 1.0


def test_the_other_captions_of_the_same_image_do_not_count_against_it():
    similarity = torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert match_ranks(similarity, torch.tensor([0, 0, 0, 1])).image_to_caption.tolist() == [0, 0]


@pytest.mark.fault("NaN among similarities")
@pytest.mark.parametrize("place", [(0, 0), (3, 7)])
def test_nan_is_refused_wherever_it_stands(place):
    similarity = torch.rand(4, 20)
    similarity[place] = torch.nan
    with pytest.raises(CapbenchError, match="NaN"):
        match_ranks(similarity, five_each(4))


@pytest.mark.parametrize("chunk", [1, None])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "order"])
def test_nan_embeddings_are_refused(chunk, similarity):
    images, captions = normalize(torch.rand(4, 3), dim=1), normalize(torch.rand(20, 3), dim=1)
    captions[11, 1] = torch.nan
    with pytest.raises(CapbenchError, match="NaN"):
        embedding_ranks(images, captions, five_each(4), similarity, chunk)


def test_infinite_similarities_are_ranked_as_ties():
    assert match_ranks(torch.full((2, 2), torch.inf), torch.arange(2)).image_to_caption.tolist() == [1, 1]
    assert match_ranks(torch.full((2, 2), -torch.inf), torch.arange(2)).caption_to_image.tolist() == [1, 1]


def test_an_image_without_a_caption_is_named():
    with pytest.raises(CapbenchError, match=r"images without a caption .* 1: 1"):
        match_ranks(torch.rand(3, 2), torch.tensor([0, 2]))


def test_a_caption_of_an_image_that_does_not_exist_is_refused():
    with pytest.raises(CapbenchError, match=r"0\.\.1"):
        match_ranks(torch.rand(2, 2), torch.tensor([0, 2]))


def test_no_ranks_are_a_message_and_not_a_number():
    nothing = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(CapbenchError, match="nothing to rank"):
        retrieval_metrics(Ranks(nothing, nothing))


def test_the_median_of_an_even_count_is_rounded_down_and_one_based():
    metrics = retrieval_metrics(Ranks(torch.tensor([0, 1, 2, 7]), torch.tensor([4, 4])))
    assert metrics["image_to_caption_median_rank"] == 2.0
    assert metrics["image_to_caption_mean_rank"] == 3.5
    assert metrics["caption_to_image_median_rank"] == 5.0
    assert metrics["image_to_caption_r1"] == 25.0


def test_another_similarity_can_be_passed_in():
    def order(images: Tensor, captions: Tensor) -> Tensor:
        return -(captions[None] - images[:, None]).clamp(min=0).square().sum(-1)

    images, captions = torch.rand(6, 4), torch.rand(30, 4)
    expected = match_ranks(order(images, captions), five_each(6))
    actual = embedding_ranks(images, captions, five_each(6), order, chunk=4)
    assert torch.equal(actual.image_to_caption, expected.image_to_caption)
    assert torch.equal(actual.caption_to_image, expected.caption_to_image)


@pytest.mark.parametrize("chunk", [1, 4, None])
def test_the_order_ranks_as_its_definition(chunk):
    images, captions = torch.rand(6, 4), torch.rand(30, 4)
    expected = match_ranks(-(captions[None] - images[:, None]).clamp(min=0).norm(dim=2), five_each(6))
    actual = embedding_ranks(images, captions, five_each(6), "order", chunk)
    assert torch.equal(actual.image_to_caption, expected.image_to_caption)
    assert torch.equal(actual.caption_to_image, expected.caption_to_image)


def test_the_cosine_refuses_vectors_whose_length_is_not_1_and_names_one():
    """Images at two lengths: a dot product prefers the longer ones for every caption."""
    images = normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    captions, scaled = images[five_each(20)], images * torch.linspace(1, 4, 20)[:, None]
    perfect = embedding_ranks(images, captions, five_each(20))
    assert not perfect.caption_to_image.any()
    assert embedding_ranks(scaled, captions, five_each(20), "dot").caption_to_image.any()
    with pytest.raises(CapbenchError, match=r'row 1 of images has length 1\.158.*"dot"'):
        embedding_ranks(scaled, captions, five_each(20))
    with pytest.raises(CapbenchError, match="row 2 of captions has length 0"):
        embedding_ranks(images, captions.index_fill(0, torch.tensor(2), 0), five_each(20))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_vectors_normalised_in_any_precision_have_a_cosine(dtype):
    vectors = torch.randn(50, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = normalize(vectors.to(dtype), dim=1)
    assert torch.equal(
        embedding_ranks(v, v, torch.arange(50)).image_to_caption,
        embedding_ranks(v, v, torch.arange(50), "dot").image_to_caption,
    )


def test_numpy_arrays_are_ranked_as_tensors_are():
    random = np.random.default_rng(0)
    images, captions = random.standard_normal((6, 4)), random.standard_normal((30, 4)).astype(np.float32)
    image_of_caption = np.repeat(np.arange(6, dtype=np.int16), 5)
    captions.flags.writeable = False  # as a memory-mapped file is
    metrics, ranks = evaluate_protocol(images, captions, image_of_caption, similarity="dot")
    tensors = torch.from_numpy(images), torch.from_numpy(captions.copy()), five_each(6)
    expected_metrics, expected = evaluate_protocol(*tensors, similarity="dot")
    assert metrics == expected_metrics
    assert torch.equal(ranks.image_to_caption, expected.image_to_caption)
    assert torch.equal(ranks.caption_to_image, expected.caption_to_image)
    assert torch.equal(match_ranks(images @ captions.T, image_of_caption).caption_to_image, expected.caption_to_image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.ones(4, 3, dtype=torch.int64)}, r"images is int64 \[4, 3\], not floating-point"),
        ({"images": torch.ones(4)}, r"images is float32 \[4\], not floating-point \[image, dim\]"),
        ({"captions": torch.ones(20, 5)}, r"captions is float32 \[20, 5\].*images has 3 for dim"),
        ({"images": torch.ones(4, 0), "captions": torch.ones(20, 0)}, "dim must be at least 1"),
        ({"image_of_caption": torch.ones(20)}, r"image_of_caption is float32 \[20\], not integer \[caption\]"),
        ({"image_of_caption": torch.arange(3)}, "captions has 20 for caption"),
        ({"image_of_caption": five_each(4) + 1}, r"image_of_caption must lie in 0\.\.3"),
        ({"images": np.array([["a"]])}, "images is ndarray, not a tensor or NumPy array of numbers"),
        ({"images": torch.ones(0, 3)}, "the 0 images"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"similarity": lambda v, c: c @ v.T}, r"returned \[20, 4\], not \[image, caption\] = \[4, 20\]"),
    ],
)
@pytest.mark.parametrize("function", [embedding_ranks, evaluate_protocol])
def test_a_wrong_argument_is_named_with_its_shape(function, change, message):
    right = {"images": torch.ones(4, 3), "captions": torch.ones(20, 3), "image_of_caption": five_each(4)}
    with pytest.raises(CapbenchError, match=message):
        unwrap(function)(**{**right, "similarity": "dot", **change})


def test_an_unknown_similarity_is_refused():
    with pytest.raises(CapbenchError, match="cosine, dot, order"):
        unwrap(embedding_ranks)(torch.rand(4, 2), torch.rand(20, 2), five_each(4), "euclidean")


@pytest.mark.fault("out of memory in evaluation")
def test_out_of_memory_halves_the_chunk_and_keeps_the_ranks():
    images, captions = torch.randint(-3, 4, (40, 8)).float(), torch.randint(-3, 4, (200, 8)).float()
    sizes = []

    def narrow(left: Tensor, right: Tensor) -> Tensor:
        sizes.append(len(left) * len(right))
        if sizes[-1] > 700:
            return left @ torch.empty(2**60, dtype=torch.uint8)  # a real refusal of the allocator
        return left @ right.T

    expected = match_ranks(images @ captions.T, five_each(40))
    actual = embedding_ranks(images, captions, five_each(40), narrow, chunk=40)
    assert torch.equal(actual.image_to_caption, expected.image_to_caption)
    assert torch.equal(actual.caption_to_image, expected.caption_to_image)
    assert max(sizes) > 700 > min(sizes)


def test_one_image_that_does_not_fit_is_an_actionable_error():
    def greedy(left: Tensor, right: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(CapbenchError, match="one image"):
        embedding_ranks(torch.rand(4, 2), torch.rand(20, 2), five_each(4), greedy)


def test_another_runtime_error_is_not_taken_for_memory():
    def broken(left: Tensor, right: Tensor) -> Tensor:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        embedding_ranks(torch.rand(4, 2), torch.rand(20, 2), five_each(4), broken)


SHORT_OF_MEMORY = """
import logging, resource, torch
from pathlib import Path
from capbench.kernels.ranks import cpu
from capbench.metrics.retrieval import embedding_ranks

cpu.CPU_TILE = 2**25  # similarities: 128 MB
torch.set_num_threads(1)  # a thread that starts under the limit would need memory of its own
torch.manual_seed(0)
image_of_caption = torch.arange(2000).repeat_interleave(5)
images = torch.randint(-3, 4, (2000, 8)).float()
captions = images[image_of_caption] + torch.randint(-1, 2, (10000, 8))
logging.basicConfig()
pages = int(Path("/proc/self/statm").read_text().split()[0])
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 48 * 2**20, limits[1]))
short = embedding_ranks(images, captions, image_of_caption, "dot", chunk=2000)
resource.setrlimit(resource.RLIMIT_AS, limits)
enough = embedding_ranks(images, captions, image_of_caption, "dot")
print(torch.equal(short.image_to_caption, enough.image_to_caption))
print(torch.equal(short.caption_to_image, enough.caption_to_image))
"""


@pytest.mark.fault("out of memory in evaluation")
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space")
def test_a_process_short_of_memory_still_ranks():
    """In a process of its own: this one may have freed memory at hand that no limit takes away."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", SHORT_OF_MEMORY]
    done = subprocess.run(command, env=plain, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "True"], done.stderr
    assert "retrying with" in done.stderr


def test_no_more_than_a_tile_and_some_counts_is_held():
    """From 500 x 2,500 to 1,000 x 5,000 the matrix grows fourfold, from 5 to 20 MB; what is held by less than a MB."""
    held = []
    for images in (500, 1000):
        image_of_caption = five_each(images)
        v, c = torch.randn(images, 16), torch.randn(5 * images, 16)
        held.append(peak_bytes(partial(embedding_ranks, v, c, image_of_caption, "dot"), "cpu"))
    assert held[1] < held[0] + 2**20
    assert held[1] < 3 * 4 * CPU_TILE


def test_five_folds_are_the_mean_over_consecutive_blocks(monkeypatch):
    monkeypatch.setattr(retrieval, "FOLD", 10)
    image_of_caption = five_each(50)[torch.randperm(250)]
    images, captions = normalize(torch.randn(50, 6), dim=1), normalize(torch.randn(250, 6), dim=1)
    metrics, ranks = evaluate_protocol(images, captions, image_of_caption, "5-fold 1K")
    folds = []
    for start in range(0, 50, 10):
        own = (image_of_caption >= start) & (image_of_caption < start + 10)
        part = embedding_ranks(images[start : start + 10], captions[own], image_of_caption[own] - start)
        assert torch.equal(ranks.image_to_caption[start : start + 10], part.image_to_caption)
        assert torch.equal(ranks.caption_to_image[own], part.caption_to_image)
        folds.append(retrieval_metrics(part))
    for name, value in metrics.items():
        assert value == pytest.approx(sum(fold[name] for fold in folds) / 5)


def test_one_fold_is_the_first_block_and_five_k_is_the_whole(monkeypatch):
    monkeypatch.setattr(retrieval, "FOLD", 10)
    image_of_caption = five_each(50)
    images, captions = normalize(torch.randn(50, 6), dim=1), normalize(torch.randn(250, 6), dim=1)
    _, first = evaluate_protocol(images, captions, image_of_caption, "1K")
    assert torch.equal(
        first.caption_to_image, embedding_ranks(images[:10], captions[:50], image_of_caption[:50]).caption_to_image
    )
    whole, _ = evaluate_protocol(images, captions, image_of_caption)
    assert evaluate_protocol(images, captions, image_of_caption, "5K")[0] == whole


@pytest.mark.parametrize(("protocol", "message"), [("1K", "at least"), ("5K", "5,000"), ("2K", "choose one")])
def test_a_protocol_that_does_not_fit_is_refused(protocol, message):
    with pytest.raises(CapbenchError, match=message):
        evaluate_protocol(torch.rand(4, 2), torch.rand(20, 2), five_each(4), protocol)


def test_counting_takes_little_beside_the_product():
    similarity, image_of_caption = torch.rand(1000, 5000), five_each(1000)
    match_ranks(similarity, image_of_caption)
    start = time.process_time()
    match_ranks(similarity, image_of_caption)
    assert time.process_time() - start < 0.5
