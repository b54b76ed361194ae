"""The hinge ranking losses, forward and backward, against the whole matrix and torch.compile of it; d = 1024.

FLOP: 2 x batch^2 x d for the hardest negatives, whose gradient needs only the winners; 6 x batch^2 x d for the sum: the
product and one for each gradient. On a CPU a batch of 65,536 would
take minutes: a slice of both sides is timed and multiplied up, because the product is nearly all of the work.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.bench import COMPILED, DEVICE, ON_GPU, Case, Run, Variant, rows
from capbench.kernels.ranking_loss import ranking_loss
from capbench.kernels.ranking_loss.reference import excluded_pairs, max_of_hinges, sum_of_hinges

DIM, MARGIN = 1024, 0.2
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
BATCHES = (128, 1024, 4096, 8192, 16384, 32768, 65536) if ON_GPU else (128, 512, 1024, 2048, 4096)
COMPILED_AT = (128, 4096, 32768) if ON_GPU else (128, 4096)
LARGEST, SLICE = 65536, 8192
DENSE = {"hardest": max_of_hinges, "sum": sum_of_hinges}


def ours(negatives: str) -> Run:
    loss = DENSE[negatives].__name__
    return lambda images, captions, owner: ranking_loss(images, captions, owner, MARGIN, loss)  # type: ignore[arg-type]


def dense(negatives: str) -> Run:
    loss = DENSE[negatives]
    return lambda images, captions, owner: loss(images @ captions.T, excluded_pairs(owner), MARGIN)


def pairs(batch: int, dim: int, dtype: torch.dtype, device: torch.device | str) -> tuple[Tensor, ...]:
    """Unit embeddings as early in training, and each caption's image.

    A caption is a little closer to its own image (a cosine of about 0.2) than to others, and half of the negatives
    violate the margin. One pair in fifty shares its image with another.
    """
    images = torch.randn(batch, dim, device=device)
    captions = normalize(images + 5 * torch.randn(batch, dim, device=device), dim=1)
    owner = torch.arange(batch, device=device)
    owner[1::50] -= 1
    return normalize(images, dim=1).to(dtype), captions.to(dtype), owner


def case(batch: int, negatives: str, timed: int | None = None) -> Case:
    timed = timed or batch
    if timed == batch:
        variants = {"ours": Variant(ours(negatives), ours=True), "dense matrix": Variant(dense(negatives))}
    else:
        name = f"ours, a slice of {timed:,} x {timed:,} multiplied up"
        variants = {name: Variant(ours(negatives), ours=True, scale=(batch / timed) ** 2)}
    if batch in COMPILED_AT:
        variants[f"{COMPILED} of the dense"] = Variant(dense(negatives))
    checked = (
        2100 if ON_GPU else {"hardest": 700, "sum": 1100}[negatives]
    )  # large enough for the path that streams wide tiles
    return Case(
        operation=f"ranking loss, {negatives}, forward and backward",
        size=f"batch {batch:,}",
        numbers={"images": batch, "captions": batch, "dim": DIM},
        dtype=DTYPE, flop=(2.0 if negatives == "hardest" else 6.0) * batch**2 * DIM,
        bytes=4.0 * batch * DIM * DTYPE.itemsize, variants=variants, inputs=partial(pairs, timed, DIM, DTYPE, DEVICE),
        small=partial(pairs, checked, 16, torch.float64, "cpu"), reference=dense(negatives), backward=True,
    )  # fmt: skip


CASES = [
    *(case(batch, "hardest") for batch in BATCHES),
    *([] if ON_GPU else [case(LARGEST, "hardest", timed=SLICE)]),
    *(case(batch, "sum") for batch in (COMPILED_AT if ON_GPU else (128, 2048))),
]


@rows(CASES)
def test_ranking_loss(show, case: Case, variant: str) -> None:
    show(case, variant)
