"""maxsim against the whole tensor, torch.compile of it, and a chunked product with a max.

20 regions, 16 words, d = 1024. FLOP: 2 x images x regions x words x d forward; the gradient needs only the winners:
4 x images x words x d more.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.bench import COMPILED, DEVICE, ON_GPU, Case, Variant, rows
from capbench.kernels.maxsim import maxsim
from capbench.kernels.maxsim.reference import reference_maxsim

REGIONS, WORDS, DIM = 20, 16, 1024
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
BATCHES = (50, 100, 200, 400, 800, 1600) if ON_GPU else (25, 50, 100, 200)
LARGE = (1000, 5000) if ON_GPU else (200, 1000)
ELEMENTS = 2**28 if ON_GPU else 2**22


def dense(regions: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
    best = torch.einsum("kid,ltd->klit", regions, words).amax(2)
    present = torch.arange(words.shape[1], device=words.device) < lengths[:, None]
    return torch.where(present, best, 0).sum(2)


def by_chunks(regions: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
    """A matrix product and a max for as many captions at a time as give 2^28 scores (2^22 on a CPU)."""
    images, count, dim = regions.shape
    flat, width = regions.reshape(-1, dim), words.shape[1]
    step = max(1, ELEMENTS // (len(flat) * width))
    found = []
    for chunk, ends in zip(words.split(step), lengths.split(step), strict=True):
        best = (flat @ chunk.reshape(-1, dim).T).view(images, count, len(chunk), width).amax(1)
        present = torch.arange(width, device=words.device) < ends[:, None]
        found.append(torch.where(present, best, 0).sum(2))
    return torch.cat(found, 1)


VARIANTS = {
    "ours": Variant(maxsim, ours=True),
    "dense einsum, max": Variant(dense),
    "one product, max by chunks": Variant(by_chunks),
}


def inputs(images: int, captions: int) -> tuple[Tensor, ...]:
    regions = torch.randn(images, REGIONS, DIM, device=DEVICE).to(DTYPE)
    words = torch.randn(captions, WORDS, DIM, device=DEVICE).to(DTYPE)
    return regions, words, torch.full((captions,), WORDS, device=DEVICE)


def small() -> tuple[Tensor, ...]:
    """Captions of several lengths, so that the padding is checked too."""
    random = torch.Generator().manual_seed(0)
    regions = torch.randn(5, REGIONS, 48, dtype=torch.float64, generator=random)
    words = torch.randn(7, WORDS, 48, dtype=torch.float64, generator=random)
    return regions, words, torch.randint(1, WORDS + 1, (7,), generator=random)


def case(images: int, captions: int, backward: bool, compiled: bool = False) -> Case:
    words = captions * WORDS
    flop = 2.0 * images * REGIONS * words * DIM + (4.0 * images * words * DIM if backward else 0)
    once = (images * REGIONS + words) * DIM * DTYPE.itemsize * (2 if backward else 1) + 4 * images * captions
    compiled_dense = {f"{COMPILED} of the dense": Variant(dense)} if compiled else {}
    return Case(
        operation="maxsim, forward and backward" if backward else "maxsim, forward",
        size=f"{images:,} images x {captions:,} captions",
        numbers={"images": images, "captions": captions, "regions": REGIONS, "words": WORDS, "dim": DIM},
        dtype=DTYPE, flop=flop, bytes=once, variants=VARIANTS | compiled_dense,
        inputs=partial(inputs, images, captions), small=small, reference=reference_maxsim, backward=backward,
    )  # fmt: skip


CASES = [
    case(100, 100, backward=False, compiled=True),
    case(*LARGE, backward=False, compiled=ON_GPU),
    *(case(batch, batch, backward=True, compiled=batch == 100) for batch in BATCHES),
    *([case(*LARGE, backward=True, compiled=True)] if ON_GPU else []),
]


@rows(CASES)
def test_maxsim(show, case: Case, variant: str) -> None:
    show(case, variant)
