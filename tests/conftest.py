"""Shapes are checked in tests: every annotated function of the project is checked as it is called."""

from __future__ import annotations

from jaxtyping import install_import_hook

install_import_hook(["capbench", "reproductions"], "beartype.beartype")
