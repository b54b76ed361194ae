"""Retrieval ranks both ways, d = 1024: counting against the whole matrix and the loops of the original code.

FLOP: 2 x images x captions x d, for one product serves both directions. The loops use numpy, as the original does, so
their memory is not seen; beyond 1,000 images they are timed on a part of the queries. A million images by five million
captions is timed on a slice that never holds its matrix, and multiplied up; the embeddings themselves (24 GB in
float32) are not read from anywhere.
"""

from __future__ import annotations

from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.bench import DEVICE, ON_GPU, Case, Way, rows
from capbench.metrics import retrieval
from capbench.metrics.retrieval import embedding_ranks

EACH, DIM, DTYPE = 5, 1024, torch.float32
IMAGES = (1000, 5000, 10000, 20000, 40000) if ON_GPU else (625, 1000, 1250, 2500, 5000)
LOOPED = {1000: 1000, 5000: 20}  # images of which the loops are timed
SMALL = 20  # images of the check, which even those loops go through
SLICE = 20000 if ON_GPU else 2000
MILLION = 10**6


def ours(images: Tensor, captions: Tensor, owner: Tensor) -> Tensor:
    ranks = embedding_ranks(images, captions, owner)
    return torch.cat([ranks.image_to_caption, ranks.caption_to_image])


def streamed(images: Tensor, captions: Tensor, owner: Tensor) -> Tensor:
    """Ours where the matrix is too large to be whole."""
    with patch.object(retrieval, "WHOLE_MATRIX_BYTES", 0):
        return ours(images, captions, owner)


def whole_matrix(images: Tensor, captions: Tensor, owner: Tensor) -> Tensor:
    """The matrix in memory, compared and counted; captions come in the order of their images, as many for each."""
    scores = images @ captions.T
    own = scores[owner, torch.arange(len(owner), device=owner.device)]
    best = own.view(len(images), -1).amax(1)
    first = (scores > best[:, None]).sum(1)
    second = (scores > own).sum(0)
    return torch.cat([first, second]).cpu()


def loops(images: Tensor, captions: Tensor, owner: Tensor, count: int) -> Tensor:
    """One argsort a query, as evaluation.py of the original code does it, for the first `count` images and theirs."""
    v, c, own = (x.cpu().numpy() for x in (images, captions, owner))
    queries = int((own < count).sum())
    order = (np.argsort(v[i] @ c.T)[::-1] for i in range(min(count, len(v))))
    first = [int(np.flatnonzero(own[ranked] == i)[0]) for i, ranked in enumerate(order)]
    second = [int(np.flatnonzero(np.argsort(c[k] @ v.T)[::-1] == own[k])[0]) for k in range(queries)]
    return torch.tensor([*first, *second])


def embeddings(images: int, dim: int, dtype: torch.dtype, device: torch.device | str) -> tuple[Tensor, ...]:
    """Captions near their image, but not so near that all ranks are 0, which would check nothing."""
    random = torch.Generator(device).manual_seed(0)
    owner = torch.arange(images, device=device).repeat_interleave(EACH)
    v = normalize(torch.randn(images, dim, generator=random, device=device), dim=1)
    c = normalize(v[owner] + 0.4 * torch.randn(images * EACH, dim, generator=random, device=device), dim=1)
    return v.to(dtype), c.to(dtype), owner


def case(images: int) -> Case:
    ways = {"ours": Way(ours, ours=True), "whole matrix, counted": Way(whole_matrix)}
    if images in LOOPED:
        count = LOOPED[images]
        part = "" if count == images else f", {count} of {images:,} images and theirs, multiplied up"
        name = f"original: one argsort a query{part}"
        ways[name] = Way(partial(loops, count=count), scale=images / count, counted=False)
    return sized(images, images * EACH, ways, images)


def sized(images: int, captions: int, ways: dict[str, Way], timed: int) -> Case:
    return Case(
        operation="ranks both ways",
        size=f"{images:,} images x {captions:,} captions",
        numbers={"images": images, "captions": captions, "dim": DIM},
        dtype=DTYPE, flop=2.0 * images * captions * DIM, bytes=(images + captions) * (DIM * DTYPE.itemsize + 8.0),
        ways=ways, inputs=partial(embeddings, timed, DIM, DTYPE, DEVICE),
        small=partial(embeddings, SMALL, 16, torch.float64, "cpu"), reference=partial(loops, count=SMALL),
    )  # fmt: skip


def a_million() -> Case:
    """Rows and columns are independent, so that time grows with images x captions."""
    name = f"ours, streaming, a slice of {SLICE:,} x {SLICE * EACH:,} multiplied up"
    way = Way(streamed, ours=True, scale=(MILLION / SLICE) ** 2)
    return sized(MILLION, MILLION * EACH, {name: way}, SLICE)


CASES = [*map(case, IMAGES), a_million()]


@rows(CASES)
def test_ranks(show, case: Case, way: str) -> None:
    show(case, way)
