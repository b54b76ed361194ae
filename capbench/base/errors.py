"""The error that a user can fix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

LISTED = 10  # values that a message spells out


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


def listed(values: Sequence[object]) -> str:
    """The first ten values, and how many more there are.

    >>> listed(range(12))
    '0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more'
    """
    shown = ", ".join(map(str, values[:LISTED]))
    return shown if len(values) <= LISTED else f"{shown} and {len(values) - LISTED:,} more"


class StoppedError(BaseException):
    """Ctrl-C or a signal stopped the work and what was done is saved: the same command continues it.

    As KeyboardInterrupt, it is no Exception: what passes over a failure does not swallow it.
    """


def out_of_memory(error: BaseException) -> bool:
    """Whether torch, on any device, or Python reports that memory ran out.

    >>> out_of_memory(RuntimeError("CUDA out of memory")), out_of_memory(RuntimeError("a defect"))
    (True, False)
    """
    said = ("can't allocate memory", "not enough memory", "out of memory")
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in said)
    )
