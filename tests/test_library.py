"""`import capbench`: what it offers, and that it costs nothing until it is used."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import capbench

STUB = Path(capbench.__file__).with_suffix(".pyi")
OFFERED = {
    alias.name: f"capbench.{node.module}"
    for node in ast.parse(STUB.read_text()).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}


def test_importing_capbench_imports_neither_torch_nor_pandas():
    code = "import capbench, sys; print(sorted({'torch', 'pandas', 'matplotlib', 'numpy'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_all_names_are_those_of_the_stub():
    assert dir(capbench) == sorted(OFFERED)


@pytest.mark.parametrize("name", OFFERED)
def test_a_name_is_the_documented_one_of_its_module(name):
    offered = getattr(capbench, name)
    assert offered is getattr(sys.modules[OFFERED[name]], name)
    assert offered.__module__ == OFFERED[name]
    assert inspect.getdoc(offered)


def test_a_name_that_is_not_offered_is_an_attribute_error():
    with pytest.raises(AttributeError, match="maximum_similarity"):
        getattr(capbench, "maximum_similarity")  # noqa: B009
