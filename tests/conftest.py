"""Shapes are checked in tests: the functions of each module that annotates shapes are checked as they are called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook


def modules_with_shapes() -> list[str]:
    """The modules of the project that import jaxtyping. Checking the calls of all others doubles the tests' time."""
    root = Path(__file__).resolve().parents[1]
    files = [file for package in ("capbench", "reproductions") for file in (root / package).rglob("*.py")]
    found = [file.relative_to(root) for file in files if "from jaxtyping import" in file.read_text(encoding="utf-8")]
    return sorted(".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in found)


install_import_hook(modules_with_shapes(), "beartype.beartype")

from capbench.kernels._triton import interpreted  # noqa: E402 - the hook comes first
from tests.faults import counted, pytest_addoption, pytest_configure, pytest_itemcollected  # noqa: E402, F401

# Test files whose results depend on the processor's instructions: marked `numerical`, and run again by
# `nox -s tests-portable` with lesser instructions.
NUMERICAL = {
    *("align", "alignment", "attention_kernel", "attention_objective", "chain", "decoding", "encoders", "exact_ranks"),
    *("features", "gru", "images", "karpathy", "log_prob", "maxsim", "memory_laws", "objective"),
    *("processor", "ranking_loss", "ranks_kernel", "retrieval", "scenes", "scenes_trunk", "search"),
    *("significance", "training"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_kernels = pytest.mark.skip(reason="needs a GPU; a test of its own runs it in Triton's interpreter")
    kernels_alone = pytest.mark.skip(reason="Triton's interpreter is for the tests of kernels")
    for item in items:
        if item.path.stem.removeprefix("test_") in NUMERICAL:
            item.add_marker(pytest.mark.numerical)
        kernel = item.get_closest_marker("kernel")
        if kernel and not (interpreted() or torch.cuda.is_available()):
            item.add_marker(no_kernels)
        elif interpreted() and not kernel:
            item.add_marker(kernels_alone)


@pytest.fixture(scope="session", autouse=True)
def no_configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The data sets that the user has registered do not count."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("configuration")))
        yield


@pytest.fixture(autouse=True)
def poison(request: pytest.FixtureRequest) -> Iterator[None]:
    """In the tests of kernels new memory is NaN, which exposes an output that a kernel leaves partly unwritten."""
    if not request.node.get_closest_marker("kernel"):
        yield
        return
    filling = torch.utils.deterministic
    before = filling.fill_uninitialized_memory  # type: ignore[attr-defined]
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(strict, warn_only=warns)
    filling.fill_uninitialized_memory = before  # type: ignore[attr-defined]
