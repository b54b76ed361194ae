"""The pages of the library: what `import capbench` offers, from its docstrings, by mkdocstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import griffe

from capbench.base.grouping import grouped

PACKAGE = Path(__file__).parents[1]
TITLES = {  # of the page of each part; a part without one is called by its own name
    "captioners": "Decoding",
    "data": "Data sets",
    "evidence": "Records",
    "kernels": "Kernels",
    "metrics": "Metrics",
    "runs": "Trained models",
}
_EXAMPLE = re.compile(r"(?m)^>>> .*\n(?:(?!\n|\Z).*\n?)*")


def pages() -> Iterator[tuple[str, str, str]]:
    """A page for each part that offers something: its path, its title, its markdown."""
    for part, names in offered().items():
        title = TITLES.get(part, part.capitalize())
        blocks = [f"::: capbench.{name}" for name in names]
        yield f"api/{part}.md", title, "\n\n".join([f"# {title}", *blocks]) + "\n"


def offered() -> dict[str, list[str]]:
    """The names of `capbench/__init__.pyi`, by the part that each comes from."""
    nodes = ast.parse((PACKAGE / "__init__.pyi").read_text("utf-8")).body
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    by_part = grouped(imports, lambda node: str(node.module).partition(".")[0])
    return {part: [alias.name for node in nodes for alias in node.names] for part, nodes in by_part.items()}


class Examples(griffe.Extension):
    """Puts the examples of docstrings in fences, for markdown would take their prompts for quotations."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(docstring: str) -> str:
    """A docstring with its examples in fences."""
    return _EXAMPLE.sub(lambda match: f"```pycon\n{match[0].rstrip()}\n```\n", docstring).rstrip("\n")
