"""Rows as a table for people, as CSV, LaTeX or JSON: the four formats of every command that lists."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from capbench.cli.options import Format
from capbench.leaderboard.markdown import DASH, plain

Row = Mapping[str, Any]  # by column; every row of a list has the same columns


def written(
    rows: Sequence[Row], form: Format, shown: Callable[[Row], Row] = lambda row: row, lifts: bool = False
) -> str:
    """Rows in a format, without a last line end. `shown` makes of a row what people read in a table or in LaTeX.

    JSON holds all values as they are. In CSV a list is joined by spaces, and None is an empty cell. With `lifts`, what
    is the same in all rows of a table stands once, above it.

    >>> print(written([{"preset": "vse0", "rsum": 1.5}, {"preset": "vsepp", "rsum": None}], "csv"))
    preset,rsum
    vse0,1.5
    vsepp,
    """
    if form == "json":
        return json.dumps(list(rows), indent=1, allow_nan=False)
    if form == "csv":
        return _csv(rows)
    cells = [{name: _cell(value) for name, value in shown(row).items()} for row in rows]
    return _latex(cells) if form == "latex" else _table(cells, lifts)


def _csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        lists = {name: " ".join(map(str, value)) for name, value in row.items() if isinstance(value, list | tuple)}
        writer.writerow({**row, **lists})
    return out.getvalue().removesuffix("\n")


def _table(cells: Sequence[Mapping[str, str]], lifts: bool) -> str:
    names = list(cells[0]) if cells else []
    same = [name for name in names if lifts and len(cells) > 1 and len({row[name] for row in cells}) == 1]
    kept = [name for name in names if name not in same]
    above = ", ".join(f"{name}: {cells[0][name]}" for name in same if cells[0][name] != DASH)
    rows = [[row[name] for name in kept] for row in cells]
    table = tabulate(rows, kept, "simple", disable_numparse=True, colalign=_sides(rows)) if kept else ""
    return "\n\n".join(filter(None, (above, table)))


def _latex(cells: Sequence[Mapping[str, str]]) -> str:
    """A booktabs table; tabulate escapes what LaTeX would read as markup."""
    names, rows = list(cells[0]) if cells else [], [list(row.values()) for row in cells]
    return str(tabulate(rows, names, "latex_booktabs", disable_numparse=True, colalign=_sides(rows)))


def _sides(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of numbers stand at the right."""
    columns = zip(*rows, strict=True)
    return ["right" if all(cell[:1] in f"{DASH}+-0123456789" for cell in column) else "left" for column in columns]


def _cell(value: object) -> str:
    """One line, in which no control character is left."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return str(value).lower()
    return plain(", ".join(map(str, value)) if isinstance(value, list | tuple) else value) or DASH
