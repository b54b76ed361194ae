"""How far numbers can be trusted: the seeds of ours, their spread and cautions, and the sources of the papers'."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from capbench.leaderboard.agreement import HEADLINES
from capbench.leaderboard.board import Board
from capbench.leaderboard.cells import cautions
from capbench.leaderboard.pooled import Runs
from capbench.metrics import registry

CONFIDENCES = {"two-sources": "two sources", "one-source": "one source", "memory": "from memory"}


@dataclass(frozen=True, eq=False)
class Basis:
    """A setting of ours, by the headline metric of its kind."""

    paper: str
    runs: Runs
    metric: str = ""  # its heading; empty where no record has a headline
    mean: str = ""
    spread: str = ""  # standard deviation over seeds; empty for one seed
    half: str = ""  # half of the 95 % interval
    test: str = ""  # how the interval was computed
    cautions: tuple[str, ...] = ()


def settings(boards: Sequence[Board]) -> Iterator[Basis]:
    """Every setting of ours, in the order of the pages."""
    for board in boards:
        for runs in board.runs:
            yield Basis(board.paper.name, runs, **_headline(runs), cautions=tuple(cautions(runs, board.paper)))


def _headline(runs: Runs) -> dict[str, str]:
    key = next((key for key in HEADLINES if key in runs.metrics), "")
    estimate = runs.estimate(key) if key else None
    if estimate is None:
        return {}
    metric, values = registry.metric(key), list(estimate.values.values())

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.{metric.digits}f}"

    return {
        "metric": metric.heading,
        "mean": number(estimate.mean),
        "spread": number(statistics.stdev(values) if len(values) > 1 else None),
        "half": number(estimate.half),
        "test": estimate.interval.test if estimate.interval else "",
    }


def confidences(board: Board) -> Mapping[str, int]:
    """How many of a paper's numbers are known by two sources, by one, or from memory."""
    counted = Counter(number.confidence for number in board.paper.reported)
    return {words: counted[name] for name, words in CONFIDENCES.items()}
