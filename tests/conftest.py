"""Shapes are checked in tests: every annotated function of the project is checked as it is called."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook(["capbench", "reproductions"], "beartype.beartype")


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
