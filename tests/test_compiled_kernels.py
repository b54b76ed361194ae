"""Triton compiles each kernel for GPUs that need not be there; the interpreter, which runs them, checks no types."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from capbench.kernels import _triton
from capbench.kernels._triton import interpreted
from capbench.kernels.attention import attention_step
from capbench.kernels.chain import viterbi_decode
from capbench.kernels.log_prob import target_log_probs
from capbench.kernels.maxsim import maxsim
from capbench.kernels.ranking_loss import ranking_loss
from capbench.kernels.ranks import embedding_ranks

pytestmark = pytest.mark.skipif(not find_spec("triton") or interpreted(), reason="needs Triton, and its compiler")

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes of shared memory that a block may have: CUDA's guide, table of limits
FOLDER = Path(__file__).parents[1] / "capbench" / "kernels"


def draw(*shape, dtype=torch.float32, grad=False):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_(grad)


def attend(dtype, locations=196, beams=3, dim=512):
    keys, query = draw(2, locations, dim, dtype=dtype, grad=True), draw(2, beams, dim, dtype=dtype, grad=True)
    context, weights = attention_step(
        keys, draw(2, locations, dim, dtype=dtype, grad=True), query, draw(dim, dtype=dtype)
    )
    (context.sum() + weights.sum()).backward()


def align(dtype, form="max", regions=20, dim=1024):
    similarity = maxsim(
        draw(3, regions, dim, dtype=dtype, grad=True), draw(4, 7, dim, dtype=dtype, grad=True),
        torch.tensor([3, 7, 1, 2]), form,
    )  # fmt: skip
    similarity.sum().backward()


def rank_pairs(dtype, loss="max_of_hinges", similarity="dot", pairs=140, dim=256):
    images, captions = (draw(pairs, dim, dtype=dtype, grad=True) for _ in range(2))
    ranking_loss(images, captions, torch.arange(pairs), 0.2, loss, similarity).backward()


def place(dtype, order=False):
    embedding_ranks(draw(40, 64, dtype=dtype), draw(200, 64, dtype=dtype), torch.arange(200) // 5, order)


def label(dtype, labels=20):
    viterbi_decode(draw(5, 8, labels, dtype=dtype), torch.tensor([8, 1, 3, 4, 0]), 1.0)


def choose(dtype, vocabulary=2538):
    target_log_probs(draw(12, vocabulary, dtype=dtype, grad=True) * 1, torch.arange(12)).sum().backward()


CASES: dict[str, list[tuple[Callable[..., None], dict[str, Any]]]] = {
    "attention": [(attend, {}), (attend, {"locations": 81, "beams": 1})],
    "maxsim": [(align, {"form": "max"}), (align, {"form": "sum"}), (align, {"regions": 33, "dim": 300})],
    "ranking_loss": [
        (rank_pairs, {"loss": loss, "similarity": similarity})
        for loss in ("max_of_hinges", "sum_of_hinges")
        for similarity in ("dot", "order")
    ],
    "ranks": [(place, {}), (place, {"order": True})],
    "chain": [(label, {}), (label, {"labels": 50})],
    "log_prob": [(choose, {}), (choose, {"vocabulary": 70_000})],
}


class NoDevice:
    """What Triton asks of a driver before it compiles, for a GPU of the compute capability `number` / 10."""

    def __init__(self, number: int) -> None:
        self.number = number

    def get_current_device(self):
        return -self.number  # Triton keeps what it compiled by the number of the device

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.number, 32)


@pytest.fixture
def compiled(gpu, monkeypatch):
    """Kernels called on CPU tensors are compiled and not run; what they would write is zeros."""
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    made: dict[str, list[Any]] = {}

    def launch(self, grid):
        def compile_only(*arguments, **options):
            made.setdefault(self.fn.__name__, []).append(self.run(*arguments, grid=grid, warmup=True, **options))

        return compile_only

    monkeypatch.setattr(JITFunction, "__getitem__", launch)
    monkeypatch.setattr(driver, "_active", NoDevice(gpu))
    monkeypatch.setattr(_triton, "interpreted", lambda: True)  # sends CPU tensors to the kernels
    monkeypatch.setattr(torch, "empty", torch.zeros)
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    return made


@pytest.mark.parametrize(("gpu", "dtype"), [(80, torch.bfloat16), (90, torch.bfloat16), (90, torch.float32)])
@pytest.mark.parametrize("operation", CASES)
def test_each_kernel_compiles_and_fits_into_shared_memory(operation, dtype, gpu, compiled):
    for call, options in CASES[operation]:
        call(dtype, **options)
    assert set(compiled) == kernels(operation)
    for name, forms in compiled.items():
        assert all(form.metadata.shared <= SHARED[gpu] for form in forms), name


def kernels(operation) -> set[str]:
    """The compiled functions of an operation that no other one calls: those that are launched."""
    files = [file for name in ("triton", "tiles") if (file := FOLDER / operation / f"{name}.py").is_file()]
    source = "".join(file.read_text() for file in files)
    modules = [importlib.import_module(f"capbench.kernels.{operation}.{file.stem}") for file in files]
    names = {
        name
        for module in modules
        for name, value in vars(module).items()
        if hasattr(value, "run") and hasattr(value, "fn")
    }
    return {name for name in names if not re.search(rf"(?<!def )\b{name}\(", source)}
