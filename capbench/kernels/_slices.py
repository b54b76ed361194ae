"""Blocks of an axis."""

from __future__ import annotations

from collections.abc import Iterator


def slices(start: int, stop: int, step: int) -> Iterator[slice]:
    """Consecutive slices of `step`, the last one shorter where it must be."""
    yield from (slice(at, min(at + step, stop)) for at in range(start, stop, step))
