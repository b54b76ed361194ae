"""The figure at the head of a paper's page: our numbers with their intervals, beside those that the paper reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from matplotlib.lines import Line2D

from capbench.base.grouping import grouped
from capbench.evidence.verdicts import Role
from capbench.leaderboard.board import Board, Match, compared
from capbench.leaderboard.page import BESIDE, Picture
from capbench.leaderboard.plots import figure_of, legend_below, slug, style_of
from capbench.leaderboard.pooled import Runs
from capbench.metrics.registry import Metric, metric

MOST = 4  # settings of ours in one figure, the best ones
_THEIRS: dict[str, Any] = {
    "marker": "D",
    "color": "black",
    "markerfacecolor": "none",
    "linestyle": "",
    "markersize": 5.5,
}
_OF: dict[Role, str] = {"target": "the paper", "baseline": "the best other system"}
_ROW, _GAP = 0.17, 0.6  # inches of a row, and rows between two metrics


@dataclass(frozen=True)
class Pair:
    """One number of ours, and the reported one."""

    runs: Runs
    metric: Metric
    reported: float


def beside(board: Board) -> Iterator[tuple[Picture, bytes]]:
    """A figure of the first data set on which a reported number has ours beside it: the paper's own, else baselines."""
    for role in _OF:
        pairs = _pairs(board, role)
        if pairs:
            where = _where(pairs[0].runs)
            here = [pair for pair in pairs if _where(pair.runs) == where]
            title = f"{board.paper.name} on {where[0]}: ours beside {_OF[role]}"
            path = f"plots/{slug(board.paper.name, *where)}-beside.svg"
            yield Picture(BESIDE, path, title, embedded=False), dots(title, here, _OF[role])
            return


def dots(title: str, pairs: Sequence[Pair], theirs: str) -> bytes:
    """A group of rows for each metric, in it one for each of our settings: its mean, interval and reported number."""
    of, settings = len({pair.runs for pair in pairs}), _best(pairs)
    metrics = list(dict.fromkeys(pair.metric for pair in pairs))
    step = len(settings) + _GAP
    with figure_of(title, 1, _ROW * step * len(metrics) + 0.5) as (figure, (axes,), save):
        for pair in pairs:
            if pair.runs in settings:
                place = settings.index(pair.runs)
                y = metrics.index(pair.metric) * step + place
                _draw(axes, pair, y, style_of(place)["color"])
        centres = [number * step + (len(settings) - 1) / 2 for number in range(len(metrics))]
        axes.set_yticks(centres, [entry.name.removesuffix(entry.rule).strip() for entry in metrics])
        axes.set_ylim(len(metrics) * step - _GAP, -1)
        axes.grid(visible=False, axis="y")
        rules = dict.fromkeys(entry.rule for entry in metrics if entry.rule and entry.name.endswith(entry.rule))
        scored = f"captions {'; '.join(rules)}\n" if rules else ""
        chosen = f"the best {len(settings)} of {of} settings; " if len(settings) < of else ""
        axes.set_xlabel(f"{scored}{chosen}higher is better; the bar is the 95 % interval")
        handles = [
            (_label(runs), Line2D([], [], marker="o", color=style_of(place)["color"]))
            for place, runs in enumerate(settings)
        ]
        legend_below(figure, [*handles, (theirs, Line2D([], [], **_THEIRS))])
        return save()


def _best(pairs: Sequence[Pair]) -> list[Runs]:
    """The settings that are furthest ahead of the reported numbers, or least behind, in the order of the tables."""
    ahead = {
        runs: sum(estimate.mean - pair.reported for pair in own if (estimate := runs.estimate(pair.metric.key)))
        / len(own)
        for runs, own in grouped(pairs, attrgetter("runs")).items()
    }
    chosen = sorted(ahead, key=lambda runs: -ahead[runs])[:MOST]
    return [runs for runs in ahead if runs in chosen]


def _draw(axes: Any, pair: Pair, y: float, colour: str) -> None:
    estimate = pair.runs.estimate(pair.metric.key)
    if estimate is not None:
        if estimate.interval is not None:
            axes.plot([estimate.interval.low, estimate.interval.high], [y, y], color=colour, linewidth=1.8)
        axes.plot([estimate.mean], [y], "o", color=colour, markersize=5)
    axes.plot([pair.reported], [y], **_THEIRS)


def _pairs(board: Board, role: Role) -> list[Pair]:
    """In the order of the tables. Of several targets that which the tables judge by, of several baselines the best."""
    matches = [m for m in board.matches if m.reported.role == role and _on_the_scale(metric(m.reported.metric))]
    if role == "baseline":
        best: dict[tuple[Runs | None, str], Match] = {}
        for match in matches:
            key = match.runs, match.reported.metric
            best[key] = max(best.get(key, match), match, key=lambda each: each.reported.number)
        matches = list(best.values())
    return [Pair(runs, metric(key), match.reported.number) for (runs, key), match in compared(matches).items()]


def _on_the_scale(entry: Metric) -> bool:
    """Whether 100 is the best: no rank, perplexity or sum."""
    return not entry.lower_is_better and entry.key != "rsum"


def _where(runs: Runs) -> tuple[str, ...]:
    return runs.first.dataset, runs.first.split, runs.first.protocol


def _label(runs: Runs) -> str:
    seeds = f"{len(runs.records)} seed{'s' * (len(runs.records) > 1)}"
    return f"{runs.first.variant}, {runs.first.encoder.rpartition('/')[2]}, {seeds}"
