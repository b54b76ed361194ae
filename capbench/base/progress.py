"""Progress of long work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from capbench.base.console import Terminal

Report = Callable[[int, int], None]


@contextmanager
def reporter(progress: Report | bool | None, what: str) -> Iterator[Report]:
    """The function to call with (images done, images): `progress` itself, or one that draws a bar if it is True."""
    if callable(progress):
        yield progress
        return
    start = time.perf_counter()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    speed = TextColumn("{task.fields[speed]} images/s")
    with Progress(*columns, speed, console=Terminal(stderr=True), disable=not progress) as bar:
        task = bar.add_task(what, total=None, speed="0")
        yield lambda done, total: bar.update(
            task, completed=done, total=total, speed=_rounded(done / (time.perf_counter() - start))
        )


@contextmanager
def byte_bar(what: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Draws a bar of bytes, their rate and the time left; gives the function to call with each number of new bytes."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}", markup=False), *columns, console=Terminal(stderr=True)) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda new: bar.advance(task, new)


def _rounded(speed: float) -> str:
    """Whole images above ten, else two digits that count.

    >>> _rounded(1234.5), _rounded(0.0371)
    ('1234', '0.037')
    """
    return f"{speed:.0f}" if speed >= 10 else f"{speed:.2g}"
