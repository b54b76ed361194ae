"""Retrieval ranks both ways, d = 1024: counting against the whole matrix and the loops of the original code.

FLOP: 2 x images x captions x d, since one product serves both directions. The loops are those of VSE++'s evaluation.py,
in numpy (so their memory is not seen): a product and an argsort for each image, and for the captions of each image one
product and an argsort each. Their embeddings are float64; a float32 variant is a baseline too. They are timed on some
of the queries. A million images by five million captions is timed on a slice and multiplied up, since rows and columns
are independent; reading the embeddings (24 GB in float32) is not included.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.bench import DEVICE, ON_GPU, Case, Variant, rows
from capbench.metrics.retrieval import embedding_ranks

EACH, DIM, DTYPE = 5, 1024, torch.float32
IMAGES = (1000, 5000, 10000, 20000, 40000) if ON_GPU else (625, 1000, 1250, 2500, 5000)
LOOPED = {5000: 20}  # of so many images, so many go through the loops
SMALL = 20  # images of the check, all of which go through the loops
SLICE = 20000 if ON_GPU else 2000
MILLION = 10**6


def ours(images: Tensor, captions: Tensor, owner: Tensor) -> Tensor:
    ranks = embedding_ranks(images, captions, owner)
    return torch.cat([ranks.image_to_caption, ranks.caption_to_image])


def whole_matrix(images: Tensor, captions: Tensor, owner: Tensor) -> Tensor:
    """Compare and count in the whole matrix; captions are in image order, equally many for each image."""
    scores = images @ captions.T
    own = scores[owner, torch.arange(len(owner), device=owner.device)]
    best = own.view(len(images), -1).amax(1)
    first = (scores > best[:, None]).sum(1)
    second = (scores > own).sum(0)
    return torch.cat([first, second]).cpu()


def loops(images: Tensor, captions: Tensor, owner: Tensor, count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """An argsort a query for the first `count` images and their captions, which are in image order."""
    v, c, own = array(images, dtype), array(captions, dtype), owner.cpu().numpy()
    first, second = [], []
    for i in range(min(count, len(v))):
        ranked = np.argsort(np.dot(v[i : i + 1], c.T).flatten())[::-1]
        first.append(min(int(np.where(ranked == k)[0][0]) for k in np.flatnonzero(own == i)))
        for scores in np.dot(c[own == i], v.T):
            second.append(int(np.where(np.argsort(scores)[::-1] == i)[0][0]))
    return torch.tensor([*first, *second])


@cache
def array(embeddings: Tensor, dtype: torch.dtype) -> NDArray[np.floating]:
    """Converted once for all rounds: the original's embeddings are in this type from the start."""
    return embeddings.cpu().to(dtype).numpy()


@pytest.fixture(scope="module", autouse=True)
def arrays_given_back() -> Iterator[None]:
    yield
    array.cache_clear()


def embeddings(images: int, dim: int, dtype: torch.dtype, device: torch.device | str) -> tuple[Tensor, ...]:
    """Captions close to their image, but not so close that all ranks are 0, which would check nothing."""
    random = torch.Generator(device).manual_seed(0)
    owner = torch.arange(images, device=device).repeat_interleave(EACH)
    v = normalize(torch.randn(images, dim, generator=random, device=device), dim=1)
    c = normalize(v[owner] + 0.4 * torch.randn(images * EACH, dim, generator=random, device=device), dim=1)
    return v.to(dtype), c.to(dtype), owner


def case(images: int) -> Case:
    variants = {"ours": Variant(ours, ours=True), "whole matrix, counted": Variant(whole_matrix)}
    if images in LOOPED:
        count = LOOPED[images]
        part = "" if count == images else f", {count} of {images:,} images and theirs, multiplied up"
        for words, dtype in (("", torch.float64), (", in float32", torch.float32)):
            run = partial(loops, count=count, dtype=dtype)
            variants[f"original: one argsort a query{words}{part}"] = Variant(run, scale=images / count, counted=False)
    return sized(images, images * EACH, variants, images)


def sized(images: int, captions: int, variants: dict[str, Variant], timed: int) -> Case:
    return Case(
        operation="ranks both ways",
        size=f"{images:,} images x {captions:,} captions",
        numbers={"images": images, "captions": captions, "dim": DIM},
        dtype=DTYPE, flop=2.0 * images * captions * DIM, bytes=(images + captions) * (DIM * DTYPE.itemsize + 8.0),
        variants=variants, inputs=partial(embeddings, timed, DIM, DTYPE, DEVICE),
        small=partial(embeddings, SMALL, 16, torch.float64, "cpu"), reference=partial(loops, count=SMALL),
    )  # fmt: skip


def a_million() -> Case:
    name = f"ours, a slice of {SLICE:,} x {SLICE * EACH:,} multiplied up"
    sliced = Variant(ours, ours=True, scale=(MILLION / SLICE) ** 2)
    return sized(MILLION, MILLION * EACH, {name: sliced}, SLICE)


CASES = [*map(case, IMAGES), a_million()]


@rows(CASES)
def test_ranks(show, case: Case, variant: str) -> None:
    show(case, variant)
