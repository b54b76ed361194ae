"""Markdown of the repository, turned into markdown of the site."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable

_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
_FOLD = re.compile(r"^<details>", re.M)
Known = Callable[[str], str | None]  # a file of the repository -> its page of the site, None where it has none


def relinked(text: str, page: str, known: Known) -> str:
    """Markdown of a file of the repository, as the page of the same path; links to files without a page become text.

    >>> pages = {"leaderboards/results/a.json": "records/a.md"}
    >>> relinked("[0](results/a.json), [loop](../loop.py)", "leaderboards/vsepp.md", pages.get)
    '[0](../records/a.md), loop'
    """

    def target(match: re.Match[str]) -> str:
        words, address = match.groups()
        if "://" in address or address.startswith(("#", "mailto:")):
            return match[0]
        path, mark, anchor = address.partition("#")
        place = known(posixpath.normpath(posixpath.join(posixpath.dirname(page), path)))
        if place is None:
            return words
        return f"[{words}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{mark}{anchor})"

    return _LINK.sub(target, text)


def unfolded(text: str) -> str:
    """Markdown whose folded parts are markdown too, as they are on GitHub."""
    return _FOLD.sub('<details markdown="1">', text)
