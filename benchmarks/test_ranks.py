"""Retrieval ranks both ways: counting against the loops of the original code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from capbench.metrics.retrieval import Ranks, embedding_ranks

IMAGES, EACH, DIM = 1000, 5, 1024


def embeddings() -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    owner = torch.arange(IMAGES).repeat_interleave(EACH)
    images = torch.nn.functional.normalize(torch.randn(IMAGES, DIM, generator=random), dim=1)
    noise = torch.randn(IMAGES * EACH, DIM, generator=random)
    return images, torch.nn.functional.normalize(images[owner] + 0.12 * noise, dim=1), owner


def loops(images: Tensor, captions: Tensor, owner: Tensor) -> Ranks:
    """One argsort a query, as evaluation.py of the original code does it."""
    v, c, own = images.numpy(), captions.numpy(), owner.numpy()
    order = [np.argsort(v[i] @ c.T)[::-1] for i in range(len(v))]
    first = [int(np.flatnonzero(own[ranked] == i)[0]) for i, ranked in enumerate(order)]
    second = [int(np.flatnonzero(np.argsort(c[k] @ v.T)[::-1] == own[k])[0]) for k in range(len(c))]
    return Ranks(torch.tensor(first), torch.tensor(second))


VARIANTS: dict[str, Callable[[Tensor, Tensor, Tensor], Ranks]] = {
    "counting": embedding_ranks,
    "original: one argsort a query": loops,
}


@pytest.fixture(scope="module")
def parity() -> None:
    """Parity before speed: both give the same ranks."""
    ours, theirs = (variant(*embeddings()) for variant in VARIANTS.values())
    assert torch.equal(ours.image_to_caption, theirs.image_to_caption)
    assert torch.equal(ours.caption_to_image, theirs.caption_to_image)


@pytest.mark.benchmark(group=f"ranks both ways, {IMAGES:,} images x {IMAGES * EACH:,} captions, d={DIM}")
@pytest.mark.usefixtures("parity")
@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks(benchmark, variant: str) -> None:
    benchmark.pedantic(VARIANTS[variant], args=embeddings(), rounds=3, warmup_rounds=1)
