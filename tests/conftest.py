"""Shapes are checked in tests: every annotated function of the project is checked as it is called."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook(["capbench", "reproductions"], "beartype.beartype")

# Files of tests that compute what depends on the instructions of the processor: marked `numerical`, and run again by
# `nox -s tests-portable` in processes that are kept to lesser ones.
NUMERICAL = {
    *("align", "alignment", "attention_kernel", "attention_objective", "chain", "decoding", "encoders", "exact_ranks"),
    *("features", "gru", "images", "karpathy", "kernels", "log_prob", "maxsim", "memory_laws", "objective"),
    *("processor", "ranking_loss", "ranks_kernel", "retrieval", "scenes", "scenes_trunk", "search"),
    *("significance", "training"),
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "numerical: computes what depends on the instructions of the processor")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem.removeprefix("test_") in NUMERICAL:
            item.add_marker(pytest.mark.numerical)


@pytest.fixture(autouse=True)
def poison(request: pytest.FixtureRequest) -> Iterator[None]:
    """New memory is NaN in the tests of kernels, so that one that leaves a part of its output unwritten is found."""
    if not request.node.name.startswith("test_kernel"):
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
