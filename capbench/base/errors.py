"""The error that a user can fix."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class CapbenchError(Exception):
    """Bad input: a file, a field, a value or an option.

    The message names it and says what to do. The command line prints the message and exits with 2. Any other
    exception is a defect of capbench and keeps its traceback.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> CapbenchError:
    """The error for a name that is not a known one; it suggests the closest and lists all.

    >>> unknown("preset", "vsep", ["vse0", "vsepp"])
    CapbenchError("no preset 'vsep'; did you mean 'vsepp'? there are vse0, vsepp")
    """
    names = list(known)
    close = get_close_matches(name, names, n=1)
    suggestion = f"did you mean {close[0]!r}? " if close else ""
    return CapbenchError(f"no {kind} {name!r}; {suggestion}there are {', '.join(names) or 'none'}")


class StoppedError(Exception):
    """Ctrl-C or a signal stopped the work and what was done is saved: the same command continues it."""
