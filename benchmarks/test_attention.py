"""One additive attention step (scores, softmax, context), L = 196, D = 512, against eager and torch.compile.

Bytes: the keys and the annotations, read once. FLOP: 2 x (attention + dim) + attention for each location; a tanh is 1.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.bench import COMPILED, DEVICE, ON_GPU, Case, Variant, rows
from capbench.kernels.attention import attention_step
from capbench.kernels.attention.reference import reference_attention_step

LOCATIONS, DIM = 196, 512
DTYPE = torch.bfloat16 if ON_GPU else torch.float32


def eager(keys: Tensor, annotations: Tensor, query: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """As usually written, for one or several hypotheses an image."""
    scores = torch.tanh(keys[:, None] + query[:, :, None]) @ v
    weights = scores.softmax(2)
    return weights @ annotations, weights


VARIANTS = {
    "ours": Variant(attention_step, ours=True),
    "eager": Variant(eager),
    f"{COMPILED} of the eager": Variant(eager),
}


def inputs(
    images: int, beam: int, locations: int, dim: int, dtype: torch.dtype, device: torch.device | str
) -> tuple[Tensor, ...]:
    shapes = [(images, locations, dim), (images, locations, dim), (images, beam, dim)]
    keys, annotations, query = (torch.randn(*shape, device=device).to(dtype) for shape in shapes)
    return keys, annotations, query, (torch.randn(dim, device=device) / dim**0.5).to(dtype)


def case(images: int, beam: int) -> Case:
    return Case(
        operation="attention step, forward",
        size=f"{images} images, beam {beam}",
        numbers={"images": images, "beam": beam, "locations": LOCATIONS, "dim": DIM},
        dtype=DTYPE, flop=5.0 * images * beam * LOCATIONS * DIM,
        bytes=(2.0 * images * LOCATIONS * DIM + 2 * images * beam * DIM) * DTYPE.itemsize, variants=VARIANTS,
        inputs=partial(inputs, images, beam, LOCATIONS, DIM, DTYPE, DEVICE),
        small=partial(inputs, 3, 2, 11, 13, torch.float64, "cpu"), reference=reference_attention_step,
    )  # fmt: skip


CASES = [case(64, 1), case(256, 1), case(64, 3)]


@rows(CASES)
def test_attention(show, case: Case, variant: str) -> None:
    show(case, variant)
