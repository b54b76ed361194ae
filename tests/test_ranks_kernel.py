"""Ranks counted from embeddings against loops in float64: tile by tile, and by the kernel.

The kernel runs on a GPU, or in Triton's interpreter in a process of its own.
"""

from __future__ import annotations

import math

import pytest
import torch

from capbench.base.errors import CapbenchError
from capbench.kernels import ranks as kernel
from capbench.kernels._triton import interpreted
from capbench.kernels.ranks import counted_ranks
from capbench.metrics.retrieval import embedding_ranks

DEVICE = "cpu" if interpreted() else "cuda"
SHAPES = [(1, 1, 1), (1, 4, 3), (3, 9, 5), (33, 71, 70), (40, 200, 16)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
needs_triton = pytest.mark.skipif(
    not (interpreted() or torch.cuda.is_available()), reason="needs a GPU; the interpreter has a test of its own"
)


def inputs(shape, dtype, seed=0):
    """Small whole numbers, whose products are exact in every type and often equal; captions are uneven and shuffled."""
    images, captions, dim = shape
    random = torch.Generator().manual_seed(seed + captions)
    left, right = (torch.randint(-2, 3, (n, dim), generator=random).to(dtype) for n in (images, captions))
    owner = torch.cat([torch.arange(images), torch.randint(0, images, (captions - images,), generator=random)])
    return left, right, owner[torch.randperm(captions, generator=random)]


def loops(images, captions, owner, measure="cosine"):
    """The definition: the wrong candidates that score at least as high as the right one."""
    images, captions = images.double(), captions.double()
    above = (captions[None] - images[:, None]).clamp(min=0)
    similarity = (images @ captions.T if measure == "cosine" else -above.norm(dim=2)).tolist()
    owner = owner.tolist()
    places = range(len(owner))
    by_image = []
    for image, row in enumerate(similarity):
        best = max(row[c] for c in places if owner[c] == image)
        by_image.append(sum(row[c] >= best for c in places if owner[c] != image))
    by_caption = [
        sum(row[c] >= similarity[owner[c]][c] for image, row in enumerate(similarity) if image != owner[c])
        for c in places
    ]
    return by_image, by_caption


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_counts_by_tiles_equal_the_definition(shape, at_once):
    images, captions, owner = inputs(shape, torch.float32)
    owner, order = owner.sort()
    similarity = images @ captions[order].T
    made = []

    def scores(rows, columns):
        made.append((rows.start, columns.start))
        return similarity[rows, columns]

    by_image, by_caption = counted_ranks(scores, owner, len(images), at_once)
    assert (by_image.tolist(), by_caption.tolist()) == loops(images, captions[order], owner)
    assert len(made) == len(set(made)) == math.ceil(len(images) / at_once) ** 2  # each tile once


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("measure", ["cosine", "order"])
def test_kernel_counts_equal_the_definition(measure, shape, dtype):
    images, captions, owner = inputs(shape, dtype)
    counted = kernel.embedding_ranks(images.to(DEVICE), captions.to(DEVICE), owner.to(DEVICE), measure == "order")
    assert tuple(ranks.tolist() for ranks in counted) == loops(images, captions, owner, measure)


@needs_triton
@pytest.mark.parametrize("measure", ["cosine", "order"])
@pytest.mark.parametrize("wide_from", [1, 2048])
def test_kernel_counts_equal_embeddings_as_ties(measure, wide_from, monkeypatch):
    """Not whole numbers: the right pair and its copies must come out of the same arithmetic, in any tile."""
    monkeypatch.setattr("capbench.kernels.ranking_loss.triton.WIDE_FROM", wide_from)
    random = torch.Generator().manual_seed(0)
    image, caption = (torch.nn.functional.normalize(torch.randn(300, generator=random), dim=0) for _ in range(2))
    owner = torch.arange(70, device=DEVICE).repeat_interleave(2)
    images, captions = image.expand(70, -1).to(DEVICE), caption.expand(140, -1).to(DEVICE)
    ranks = embedding_ranks(images, captions, owner, measure)
    assert ranks.image_to_caption.tolist() == [138] * 70
    assert ranks.caption_to_image.tolist() == [69] * 140


@needs_triton
@pytest.mark.parametrize("measure", ["cosine", "order"])
def test_kernel_ranks_of_random_embeddings_are_those_of_float64(measure):
    random = torch.Generator().manual_seed(1)
    owner = torch.arange(60).repeat_interleave(2)
    images = torch.randn(60, 40, generator=random)
    captions = images[owner] + 2 * torch.randn(120, 40, generator=random)
    ranks = embedding_ranks(images.to(DEVICE), captions.to(DEVICE), owner.to(DEVICE), measure)
    found = ranks.image_to_caption.tolist(), ranks.caption_to_image.tolist()
    assert found == loops(images, captions, owner, measure)
    assert sum(ranks.image_to_caption.tolist()) > 0


@needs_triton
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("measure", ["cosine", "order"])
def test_kernel_refuses_nan_wherever_it_stands(side, measure):
    images, captions, owner = inputs((3, 9, 5), torch.float32)
    (images, captions)[side][2, 4] = torch.nan
    with pytest.raises(CapbenchError, match="NaN"):
        embedding_ranks(images.to(DEVICE), captions.to(DEVICE), owner.to(DEVICE), measure)
