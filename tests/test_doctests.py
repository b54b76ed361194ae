"""The examples in docstrings run as they stand, and the public functions of kernels and retrieval have one each."""

from __future__ import annotations

import ast
import doctest
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHOWN = [*sorted((ROOT / "capbench/kernels").glob("*/__init__.py")), ROOT / "capbench/metrics/retrieval.py"]


def documented(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The name and docstring of a module or class and all that it defines."""
    yield prefix.rstrip(".") or "module", ast.get_docstring(node) or ""
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from documented(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef):
            yield f"{prefix}{child.name}", ast.get_docstring(child) or ""


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def examples() -> Iterator[tuple[str, str, str]]:
    """Module, name and text of each docstring with an example, read from the source: doctest would not
    find those of functions that the shape checker has wrapped."""
    for file in sorted(file for package in ("capbench", "reproductions") for file in (ROOT / package).rglob("*.py")):
        for name, text in documented(ast.parse(file.read_text(encoding="utf-8"))):
            if ">>>" in text:
                yield module_name(file), name, text


@pytest.mark.parametrize(("module", "name", "text"), [pytest.param(*e, id=".".join(e[:2])) for e in examples()])
def test_an_example_gives_what_it_shows(module, name, text):
    """In the namespace of its module, as doctest runs it."""
    namespace = dict(vars(pytest.importorskip(module, exc_type=ImportError)))
    example = doctest.DocTestParser().get_doctest(text, namespace, f"{module}.{name}", module, 0)
    said: list[str] = []
    torch.set_printoptions(profile="default")
    with np.printoptions(precision=8, suppress=False):
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append)
    assert result.attempted > 0
    assert not result.failed, "".join(said)


def test_the_readme_calls_the_library_as_it_is():
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert result.attempted > 0
    assert not result.failed


@pytest.mark.parametrize("file", SHOWN, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_public_function_shows_how_it_is_called(file):
    functions = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    public = {node.name: ast.get_docstring(node) or "" for node in functions if not node.name.startswith("_")}
    assert public
    for name, text in public.items():
        assert f"from {module_name(file)} import" in text, name
        assert name in text.partition(">>>")[2], name
