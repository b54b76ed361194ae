"""A record's learning curve as a small drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from capbench.evidence.records import Result

WIDTH, HEIGHT = 560, 160  # of the field that the line is drawn in


@dataclass(frozen=True)
class Curve:
    """A value by epoch, in the drawing's own units."""

    name: str
    points: tuple[tuple[float, float], ...]  # x to the right, y down
    dots: tuple[tuple[float, float], ...]  # the epoch that was tested
    low: str
    high: str
    epochs: int


def curves(record: Result, metric: str) -> list[Curve]:
    """The loss, and the validation metric that chose the snapshot; none of a run without epochs."""
    loss = [epoch.loss for epoch in record.curve]
    validation = [epoch.validation.get(metric) for epoch in record.curve]
    drawn = (_curve("loss", loss, None), _curve(f"{metric} on validation", validation, record.best_epoch))
    return [curve for curve in drawn if curve]


def _curve(name: str, values: Sequence[float | None], best: int | None) -> Curve | None:
    known = {epoch: value for epoch, value in enumerate(values) if value is not None and math.isfinite(value)}
    if len(known) < 2:
        return None
    low, high, last = min(known.values()), max(known.values()), max(known)

    def place(epoch: int) -> tuple[float, float]:
        share = (known[epoch] - low) / (high - low) if high > low else 0.5
        return round(WIDTH * epoch / last, 1), round(HEIGHT * (1 - share), 1)

    dots = (place(best),) if best in known else ()
    return Curve(name, tuple(map(place, known)), dots, f"{low:.4g}", f"{high:.4g}", last + 1)
