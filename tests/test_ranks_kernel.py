"""Ranks counted from embeddings against their definition in float64: tile by tile, and by the kernel."""

from __future__ import annotations

import math

import pytest
import torch

from capbench.base.errors import CapbenchError
from capbench.kernels import ranks as kernel
from capbench.kernels._triton import interpreted
from capbench.kernels.ranks import counted_ranks
from capbench.kernels.ranks.reference import reference_ranks
from capbench.metrics.retrieval import embedding_ranks

DEVICE = "cpu" if interpreted() else "cuda"
SHAPES = [(1, 1, 1), (1, 4, 3), (3, 9, 5), (33, 71, 70), (40, 200, 16)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def inputs(shape, dtype, seed=0):
    """Small whole numbers, whose products are exact in every type and often equal; captions are uneven and shuffled."""
    images, captions, dim = shape
    random = torch.Generator().manual_seed(seed + captions)
    left, right = (torch.randint(-2, 3, (n, dim), generator=random).to(dtype) for n in (images, captions))
    image_of_caption = torch.cat(
        [torch.arange(images), torch.randint(0, images, (captions - images,), generator=random)]
    )
    return left, right, image_of_caption[torch.randperm(captions, generator=random)]


def by_definition(images, captions, image_of_caption, measure="dot"):
    """The definition, on scores in float64."""
    images, captions = images.double(), captions.double()
    above = (captions[None] - images[:, None]).clamp(min=0)
    similarity = images @ captions.T if measure == "dot" else -above.norm(dim=2)
    by_image, by_caption = reference_ranks(similarity, image_of_caption)
    return by_image.tolist(), by_caption.tolist()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_counts_by_tiles_equal_the_definition(shape, at_once):
    images, captions, image_of_caption = inputs(shape, torch.float32)
    image_of_caption, order = image_of_caption.sort()
    similarity = images @ captions[order].T
    made = []

    def scores(rows, columns):
        made.append((rows.start, columns.start))
        return similarity[rows, columns]

    by_image, by_caption = counted_ranks(scores, image_of_caption, len(images), at_once)
    assert (by_image.tolist(), by_caption.tolist()) == by_definition(images, captions[order], image_of_caption)
    assert len(made) == len(set(made)) == math.ceil(len(images) / at_once) ** 2  # each tile once


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("measure", ["dot", "order"])
def test_kernel_counts_equal_the_definition(measure, shape, dtype):
    images, captions, image_of_caption = inputs(shape, dtype)
    counted = kernel.embedding_ranks(
        images.to(DEVICE), captions.to(DEVICE), image_of_caption.to(DEVICE), measure == "order"
    )
    assert tuple(ranks.tolist() for ranks in counted) == by_definition(images, captions, image_of_caption, measure)


@pytest.mark.kernel
@pytest.mark.parametrize("measure", ["dot", "order"])
@pytest.mark.parametrize("wide_from", [1, 2048])
def test_kernel_counts_equal_embeddings_as_ties(measure, wide_from, monkeypatch):
    """Not whole numbers: the right pair and its copies must come out of the same arithmetic, in any tile."""
    monkeypatch.setattr("capbench.kernels.ranking_loss.triton.WIDE_FROM", wide_from)
    random = torch.Generator().manual_seed(0)
    image, caption = (torch.nn.functional.normalize(torch.randn(300, generator=random), dim=0) for _ in range(2))
    image_of_caption = torch.arange(70, device=DEVICE).repeat_interleave(2)
    images, captions = image.expand(70, -1).to(DEVICE), caption.expand(140, -1).to(DEVICE)
    ranks = embedding_ranks(images, captions, image_of_caption, measure)
    assert ranks.image_to_caption.tolist() == [138] * 70
    assert ranks.caption_to_image.tolist() == [69] * 140


@pytest.mark.kernel
@pytest.mark.parametrize("measure", ["dot", "order"])
def test_kernel_ranks_of_random_embeddings_are_those_of_float64(measure):
    random = torch.Generator().manual_seed(1)
    image_of_caption = torch.arange(60).repeat_interleave(2)
    images = torch.randn(60, 40, generator=random)
    captions = images[image_of_caption] + 2 * torch.randn(120, 40, generator=random)
    ranks = embedding_ranks(images.to(DEVICE), captions.to(DEVICE), image_of_caption.to(DEVICE), measure)
    actual = ranks.image_to_caption.tolist(), ranks.caption_to_image.tolist()
    assert actual == by_definition(images, captions, image_of_caption, measure)
    assert sum(ranks.image_to_caption.tolist()) > 0


@pytest.mark.kernel
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("measure", ["dot", "order"])
def test_kernel_refuses_nan_wherever_it_stands(side, measure):
    images, captions, image_of_caption = inputs((3, 9, 5), torch.float32)
    (images, captions)[side][2, 4] = torch.nan
    with pytest.raises(CapbenchError, match="NaN"):
        embedding_ranks(images.to(DEVICE), captions.to(DEVICE), image_of_caption.to(DEVICE), measure)
