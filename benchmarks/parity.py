"""Parity before speed: each variant is checked against its reference, then prepared for timing."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.bench import COMPILED, DEVICE, ON_GPU, Case, Run, Variant
from capbench.timing.measure import Call, through

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # of the norm of the expected result
# Of a gradient at the timed size: a max of rounded scores may pick the other of two that are nearly equal.
GRADIENT = {torch.float32: 2e-2, torch.float16: 1e-1, torch.bfloat16: 3e-1}
SETS = (1, 2, 4, 5, 10)  # numbers of input sets that a GPU call rotates through; each divides the calls of a graph


def prepared(case: Case, variant: Variant, inputs: tuple[Tensor, ...], compiled: bool) -> tuple[Call, list[Tensor]]:
    """The call to time, and its results, gradients included. A compiled variant is compiled for these shapes alone.

    On a GPU the call rotates through several sets of the inputs, so that a short one does not find them in the cache.
    """
    run = torch.compile(variant.run, dynamic=False) if compiled else variant.run
    if not case.backward:

        def forward(*inputs: Tensor) -> object:
            with torch.no_grad():
                return run(*inputs)

        with torch.no_grad():
            return through(forward, sets(inputs)), [flat(run(*inputs))]
    found = results(run, inputs, backward=True)
    weight = weight_like(found[0])

    def both(weight: Tensor, *leaves: Tensor) -> object:
        return torch.autograd.grad(first(run(*leaves)), [x for x in leaves if x.requires_grad], weight)

    return through(both, [(of_set[0], *leaves_of(of_set[1:])) for of_set in sets((weight, *inputs))]), found


def sets(inputs: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """The inputs, and on a GPU enough copies to exceed twice its L2 cache, ten sets at most."""
    if not ON_GPU:
        return [inputs]
    cache = 2 * torch.cuda.get_device_properties(DEVICE).L2_cache_size
    size = sum(x.nbytes for x in inputs)
    count = next((count for count in SETS if count * size > cache), SETS[-1])
    return [inputs, *(tuple(x.clone() for x in inputs) for _ in range(count - 1))]


def leaves_of(inputs: tuple[Tensor, ...], gradient: bool = True) -> tuple[Tensor, ...]:
    """Copies of the inputs that require a gradient; integers are returned as they are."""
    return tuple(x.detach().clone().requires_grad_(gradient) if x.is_floating_point() else x for x in inputs)


def check_small(case: Case) -> None:
    """Check each variant against the reference in float64, forward and gradient.

    On a GPU also ours in the timed type, against the reference in float64 on the same rounded numbers.
    """
    small = case.small()
    wanted = results(case.reference, small, case.backward)
    for name, variant in case.variants.items():
        if not (name.startswith(COMPILED) or variant.optional):
            for found, expected in zip(results(variant.run, small, case.backward), wanted, strict=True):
                near(found, expected, 1e-9, f"{case.name}: {name}, in float64")
    if not ON_GPU:
        return
    rounded = tuple(x.to(DEVICE, case.dtype) if x.is_floating_point() else x.to(DEVICE) for x in small)
    exact = tuple(x.double() if x.is_floating_point() else x for x in rounded)
    wanted = results(case.reference, exact, case.backward)
    for name, variant in case.variants.items():
        if variant.ours:
            for found, expected in zip(results(variant.run, rounded, case.backward), wanted, strict=True):
                dtype = str(case.dtype).removeprefix("torch.")
                near(found, expected, TOLERANCE[case.dtype], f"{case.name}: {name}, in {dtype}")


def results(run: Run, inputs: tuple[Tensor, ...], backward: bool) -> list[Tensor]:
    """The results of an operation, and the gradients of a weighted sum of them."""
    leaves = leaves_of(inputs, backward)
    found = run(*leaves)
    if not backward:
        return [flat(found)]
    result = first(found)
    gradients = torch.autograd.grad(result, [x for x in leaves if x.requires_grad], weight_like(result))
    return [result.detach(), *gradients]


def weight_like(result: Tensor) -> Tensor:
    """The weights of that sum, the same for all variants of a case."""
    return torch.linspace(-0.5, 2.5, result.numel(), device=result.device, dtype=result.dtype).view_as(result)


def near(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    a, b = found.double().cpu(), expected.double().cpu()
    assert bool(b.any()), f"{what}: the expected result is all zeros, which checks nothing"
    assert a.shape == b.shape, f"{what}: {tuple(a.shape)} instead of {tuple(b.shape)}"
    error = float((a - b).norm() / b.norm())
    assert error <= tolerance, f"{what}: it is off by {error:.2g} of the norm"


def first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


def flat(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    tensors = [result] if isinstance(result, Tensor) else list(result)
    return torch.cat([tensor.flatten() for tensor in tensors])
