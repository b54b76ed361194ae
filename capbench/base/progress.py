"""Progress of long work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Report = Callable[[int, int], None]


@contextmanager
def reporter(progress: Report | bool | None, what: str) -> Iterator[Report]:
    """The function to call with (images done, images): `progress` itself, or one that draws a bar if it is True."""
    if callable(progress):
        yield progress
        return
    start = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    speed = TextColumn("{task.fields[speed]} images/s")
    with Progress(*columns, speed, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task(what, total=None, speed="0")
        yield lambda done, total: bar.update(
            task, completed=done, total=total, speed=_rounded(done / (time.perf_counter() - start))
        )


def _rounded(speed: float) -> str:
    """Whole images above ten, else two digits that count.

    >>> _rounded(1234.5), _rounded(0.0371)
    ('1234', '0.037')
    """
    return f"{speed:.0f}" if speed >= 10 else f"{speed:.2g}"
