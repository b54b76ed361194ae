"""Markdown in which no field of a record is read as markup."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from tabulate import tabulate

DASH = "–"
_ENTITIES = {character: f"&#{ord(character)};" for character in "|`*[]\\~#$"}
_ENTITIES |= {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_OUTER_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_SAFE_CODE = re.compile(r"[A-Za-z0-9 _.,:;=+/()\[\]#%@-]+")
_DIRECTION_MARKS = set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def plain(text: object, longest: int = 400) -> str:
    """One printable line: line ends become spaces, control characters and surrogates a replacement mark."""
    line = " ".join(str(text).split())
    hidden = {c for c in line if unicodedata.category(c) in ("Cc", "Cs") or c in _DIRECTION_MARKS}
    line = "".join("\ufffd" if character in hidden else character for character in line)
    return line if len(line) <= longest else line[: longest - 1] + "…"


def escape(text: object) -> str:
    """Text as itself, also inside a table: nothing in it is read as markdown or HTML."""
    escaped = "".join(_ENTITIES.get(character, character) for character in plain(text))
    return _OUTER_UNDERSCORE.sub("&#95;", escaped)


def code(text: object) -> str:
    """Text in the typewriter face, also inside a table."""
    line = plain(text)
    return f"`{line}`" if _SAFE_CODE.fullmatch(line) and line.strip() else f"<code>{escape(line) or DASH}</code>"


def code_block(lines: Iterable[str], language: str = "sh") -> str:
    """Lines in a fence that is longer than any run of backticks in them."""
    body = [plain(line, 2000) for line in lines]
    longest = max((len(run) for line in body for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *body, fence])


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    """A table of cells that are markdown already; `align` has a letter a column, l or r.

    Raises ValueError for a row of another width than the header, or a cell that would break the table.

    >>> print(table(["metric", "value"], [["rsum", "244.1"]], "lr"))
    | metric | value |
    |:---|---:|
    | rsum | 244.1 |
    """
    body = [list(row) for row in rows]
    for line in (list(header), *body):
        if len(line) != len(header) or any("|" in cell or "\n" in cell for cell in line):
            raise ValueError(f"a table of {len(header)} columns cannot hold the row {line}")
    sides = ["right" if letter == "r" else "left" for letter in align]
    text = tabulate(body, header, "pipe", colalign=sides if body else None, disable_numparse=True)
    first, rule, *others = text.splitlines()
    lines = [first, re.sub("-{3,}", "---", rule), *others]
    return "\n".join(re.sub(" {2,}", " ", line) for line in lines)  # unpadded: a page is read as rendered


def details(summary: str, *blocks: str) -> str:
    """A part that a viewer shows folded."""
    return "\n\n".join([f"<details><summary>{escape(summary)}</summary>", *blocks, "</details>"])


class Notes:
    """Lettered notes under a table; the same words get the same letter."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def mark(self, note: str) -> str:
        """The raised letter that refers to a note (plain text; it is escaped here)."""
        letter = self._letters.setdefault(note, _letters(len(self._letters)))
        return f"<sup>{letter}</sup>"

    def __str__(self) -> str:
        return "\n".join(f"- <sup>{letter}</sup> {escape(note)}" for note, letter in self._letters.items())


def _letters(number: int) -> str:
    """a to z, then aa, ab, ..."""
    letters = ""
    number += 1
    while number:
        number, place = divmod(number - 1, 26)
        letters = chr(ord("a") + place) + letters
    return letters
