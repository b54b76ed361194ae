"""The output layer and its cross entropy, forward and backward, against fused, chunked and compiled forms.

H = 512, V = 10,000; one word in twenty is padding. FLOP: three products of 2 x words x H x V, one forward and one for
each gradient. Bytes: hidden states and weight, read once, and their gradients. Ours is what the captioners call:
a linear layer, then `capbench.captioners.experiment.cross_entropy`. The libraries run on a GPU alone.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from benchmarks.bench import COMPILED, DEVICE, ON_GPU, Case, Variant, rows
from capbench.captioners.experiment import cross_entropy
from capbench.data.vocabulary import PAD

HIDDEN, VOCABULARY, STEPS, CHUNK = 512, 10_000, 20, 1024
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
WORDS = 5120


def ours(hidden: Tensor, weight: Tensor, bias: Tensor, captions: Tensor) -> Tensor:
    return cross_entropy(functional.linear(hidden, weight, bias), captions)


def flattened(hidden: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
    return hidden.flatten(0, 1), captions[:, 1:].flatten()


def plain(hidden: Tensor, weight: Tensor, bias: Tensor, captions: Tensor) -> Tensor:
    states, target = flattened(hidden, captions)
    return functional.cross_entropy(functional.linear(states, weight, bias), target, ignore_index=PAD)


def chunk(states: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    scores = functional.linear(states, weight, bias)
    return functional.cross_entropy(scores, target, ignore_index=PAD, reduction="sum")


def chunked(hidden: Tensor, weight: Tensor, bias: Tensor, captions: Tensor) -> Tensor:
    """Never holds all scores: each chunk of words is recomputed for its gradient."""
    states, target = flattened(hidden, captions)
    chunks = zip(states.split(CHUNK), target.split(CHUNK), strict=True)
    losses = [checkpoint(chunk, some, weight, bias, words, use_reentrant=False) for some, words in chunks]
    return torch.stack(losses).sum() / (target != PAD).sum()


def of_torch(hidden: Tensor, weight: Tensor, bias: Tensor, captions: Tensor) -> Tensor:
    """torch's own function, in chunks."""
    states, target = flattened(hidden, captions)
    options = torch.nn.LinearCrossEntropyOptions()
    loss: Tensor = functional.linear_cross_entropy(
        states, weight, target, linear_bias=bias, ignore_index=PAD, options=options
    )
    return loss


def cut(hidden: Tensor, weight: Tensor, bias: Tensor, captions: Tensor) -> Tensor:
    """Wijmans et al., Cut your losses in large-vocabulary language models (ICLR 2025)."""
    library = import_module("cut_cross_entropy")
    states, target = flattened(hidden, captions)
    loss: Tensor = library.linear_cross_entropy(states, weight, target, bias=bias, ignore_index=PAD)
    return loss


def liger(hidden: Tensor, weight: Tensor, bias: Tensor, captions: Tensor) -> Tensor:
    """Hsu et al., Liger Kernel (2024)."""
    library = import_module("liger_kernel.transformers")
    states, target = flattened(hidden, captions)
    loss: Tensor = library.LigerFusedLinearCrossEntropyLoss(ignore_index=PAD)(weight, states, target, bias)
    return loss


def inputs(
    words: int, hidden: int, vocabulary: int, dtype: torch.dtype, device: torch.device | str
) -> tuple[Tensor, ...]:
    """States, weight and bias of the magnitude that training has, and captions that end in padding."""
    count = words // STEPS
    random = torch.Generator().manual_seed(0)
    captions = torch.randint(PAD + 1, vocabulary, (count, STEPS + 1), generator=random)
    lengths = torch.randint(STEPS - 1, STEPS + 2, (count,), generator=random)
    captions = captions.masked_fill(torch.arange(STEPS + 1) >= lengths[:, None], PAD)
    shapes = {(count, STEPS, hidden): 0.5, (vocabulary, hidden): hidden**-0.5, (vocabulary,): 0.1}
    states, weight, bias = (torch.randn(*shape, device=device).mul(size).to(dtype) for shape, size in shapes.items())
    return states, weight, bias, captions.to(device)


VARIANTS = {
    "ours": Variant(ours, ours=True),
    "plain": Variant(plain),
    f"{COMPILED} of the plain": Variant(plain),
    f"{CHUNK:,} words at a time": Variant(chunked),
    "torch: linear_cross_entropy": Variant(of_torch, optional=not hasattr(torch.nn, "LinearCrossEntropyOptions")),
    "cut_cross_entropy": Variant(cut, optional=True),
    "liger_kernel": Variant(liger, optional=True),
}


def case(words: int) -> Case:
    moved = 2.0 * (words * HIDDEN + VOCABULARY * HIDDEN) * DTYPE.itemsize
    return Case(
        operation="linear and cross entropy, forward and backward",
        size=f"{words:,} words",
        numbers={"words": words, "hidden": HIDDEN, "vocabulary": VOCABULARY},
        dtype=DTYPE, flop=6.0 * words * HIDDEN * VOCABULARY, bytes=moved, variants=VARIANTS,
        inputs=partial(inputs, words, HIDDEN, VOCABULARY, DTYPE, DEVICE),
        small=partial(inputs, 60, 16, 40, torch.float64, "cpu"), reference=plain, backward=True,
    )  # fmt: skip


CASES = [case(WORDS)]


@rows(CASES)
def test_cross_entropy(show, case: Case, variant: str) -> None:
    show(case, variant)
