"""The numbers that we fall short of, and what of our own records moves them: encoder, recipe, scoring rule, beam."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from capbench.base.grouping import grouped
from capbench.evidence.verdicts import BEST_TO_WORST, Reported, Verdict, verdict
from capbench.leaderboard import cells
from capbench.leaderboard.board import Board
from capbench.leaderboard.markdown import Notes, escape, table
from capbench.leaderboard.pooled import Runs, by_metric
from capbench.metrics.registry import BEAMS, columns, families, metric, otherwise_scored

EXPLAINED = (
    "Each number whose verdict is ▼, and what it is in our other records: with another encoder or recipe, by another "
    "rule of scoring, with the best beam. A sign is the verdict that the value would have. What no line moves, no "
    "record of ours explains. What an encoder is worth without a captioner: [encoders](encoders.md)."
)


@dataclass(frozen=True)
class _Short:
    """Numbers of one system of which the same runs fall short."""

    numbers: Sequence[Reported]
    runs: Runs


def section(board: Board) -> Iterator[str]:
    """The table, the paper's own numbers first; nothing where no number is short."""
    found = sorted(_short(board), key=lambda each: each.numbers[0].role != "target")
    if not found:
        return
    yield EXPLAINED
    notes = Notes()
    yield table(["number", "whose", "value"], [line for each in found for line in _lines(board, each, notes)], "lll")
    if str(notes):
        yield str(notes)


def _short(board: Board) -> Iterator[_Short]:
    """What the page counts as short: of the paper's own numbers those that no run of ours reaches."""
    reached = {match.reported for match in board.matches if match.verdict.status in BEST_TO_WORST[:-1]}
    short = [match for match in board.matches if match.runs is not None and match.verdict.status == "short"]
    matches = [match for match in short if match.reported.role != "target" or match.reported not in reached]
    by_system = grouped(matches, lambda match: (match.reported.system, match.reported.table, match.runs))
    for (_, _, runs), group in by_system.items():
        assert runs is not None
        numbers = {match.reported.metric: match.reported for match in group}
        yield _Short([numbers[entry.key] for entry in columns(numbers, lesser=True)], runs)


def _lines(board: Board, short: _Short, notes: Notes) -> Iterator[list[str]]:
    first, ours, keys = short.numbers[0], short.runs, [number.metric for number in short.numbers]
    heading = "; ".join(escape(heading) for heading, _ in families(columns(keys, lesser=True)))
    reported = " / ".join(escape(number.value) for number in short.numbers)
    yield [f"{heading} ({escape(first.table)})", f"*{escape(first.system)}*", f"*{reported}*"]
    yield ["", f"ours: {cells.preset(ours, board.paper, notes)}, {cells.model(ours)}", _values(ours, keys, short)]
    for other in _others(board, ours, keys):
        yield ["", f"↳ {cells.preset(other, board.paper, notes)}, {cells.model(other)}", _values(other, keys, short)]
    for words, others in _alternatives(ours, keys):
        yield ["", f"↳ {words}", _values(ours, others, short)]


def _others(board: Board, ours: Runs, keys: Sequence[str]) -> Iterator[Runs]:
    """Runs on the same data that differ in the encoder alone, or in the recipe alone."""
    model = next(group for group in by_metric(board.paper, board.runs).values() if ours in group)
    for other in model:
        same = [getattr(ours.first, name) == getattr(other.first, name) for name in ("variant", "encoder")]
        of_data = (other.data, other.first.split, other.first.protocol) == (ours.data, *_where(ours))
        if other is not ours and any(same) and of_data and other.metrics.issuperset(keys):
            yield other


def _where(runs: Runs) -> tuple[str, str]:
    return runs.first.split, runs.first.protocol


def _alternatives(ours: Runs, keys: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The same captions by another rule, and those of the best beam: in words, and the keys of their metrics."""
    by_rule = grouped((entry for key in keys for entry in otherwise_scored(key)), lambda entry: entry.rule)
    for rule, entries in by_rule.items():
        if len(entries) == len(keys) and all(entry.key in ours.metrics for entry in entries):
            yield f"scored {escape(rule)}", [entry.key for entry in entries]
    of_width = {width: [f"{key}_beam{width}" for key in keys] for width in BEAMS}
    tried = {width: others for width, others in of_width.items() if ours.metrics.issuperset(others)}
    if tried:
        best = max(tried, key=lambda width: _mean(ours, tried[width][0]))
        yield f"beam {best}, the best on test of {', '.join(map(str, tried))}", tried[best]


def _values(runs: Runs, keys: Sequence[str], short: _Short) -> str:
    """The means of metrics, each with the sign of its verdict against the number in its place."""
    return " / ".join(_value(runs, key, number) for key, number in zip(keys, short.numbers, strict=True))


def _mean(runs: Runs, key: str) -> float:
    estimate = runs.estimate(key)
    return estimate.mean if estimate else math.nan


def _value(runs: Runs, key: str, number: Reported) -> str:
    estimate = runs.estimate(key)
    assert estimate is not None
    judged: Verdict = verdict(replace(number, metric=key), estimate.values, estimate.interval)
    return f"{estimate.mean:.{metric(key).digits}f}\u00a0{cells.SIGNS[judged.status]}"
