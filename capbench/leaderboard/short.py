"""The numbers that we fall short of, and what of our own records moves them: encoder, recipe, scoring rule, beam."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from capbench.base.grouping import grouped
from capbench.evidence.verdicts import BEST_TO_WORST, Reported, Verdict, verdict
from capbench.leaderboard import cells
from capbench.leaderboard.board import Board
from capbench.leaderboard.markdown import DASH, Notes, escape, table
from capbench.leaderboard.pooled import Runs, by_metric
from capbench.leaderboard.reported import systems
from capbench.metrics.registry import BEAMS, columns, families, metric, otherwise_scored

EXPLAINED = (
    "Each number whose verdict is ▼, and what it is in our other records: with another encoder or recipe, by another "
    "rule of scoring, with the best beam. A sign is the verdict that the value would have. What no line moves, no "
    "record of ours explains. What an encoder is worth without a captioner: [encoders](encoders.md)."
)


@dataclass(frozen=True)
class _Short:
    """Numbers of one system of which the same runs fall short."""

    numbers: Sequence[Reported]  # in the order of the columns of `heading`
    runs: Runs

    @property
    def keys(self) -> list[str]:
        return [number.metric for number in self.numbers]

    @property
    def heading(self) -> str:
        return "; ".join(heading for heading, _ in families(columns(self.keys, lesser=True)))


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
    for row in systems(board):
        short = [match for match in row.matches if match.runs is not None and match.verdict.status == "short"]
        counted = [match for match in short if match.reported.role != "target" or match.reported not in reached]
        for runs, matches in grouped(counted, lambda match: match.runs).items():
            assert runs is not None
            numbers = {match.reported.metric: match.reported for match in matches}
            shown = families(columns(numbers, lesser=True))
            yield _Short([numbers[entry.key] for _, members in shown for entry in members], runs)


def _lines(board: Board, short: _Short, notes: Notes) -> Iterator[list[str]]:
    def line(words: str, runs: Runs, keys: Sequence[str | None], after: Sequence[str] | None = None) -> list[str]:
        shown = zip(keys, short.numbers, after or [""] * len(keys), strict=True)
        return ["", words, " / ".join(_value(runs, key, number) + more for key, number, more in shown)]

    first, ours, keys = short.numbers[0], short.runs, short.keys
    reported = " / ".join(escape(number.value) for number in short.numbers)
    yield [f"{escape(short.heading)} ({escape(first.table)})", f"*{escape(first.system)}*", f"*{reported}*"]
    yield line(f"ours: {cells.preset(ours, board.paper, notes)}, {cells.model(ours)}", ours, keys)
    for other in _others(board, ours, keys):
        yield line(f"↳ {cells.preset(other, board.paper, notes)}, {cells.model(other)}", other, keys)
    of_rule = [{entry.rule: entry.key for entry in otherwise_scored(key)} for key in keys]
    for rule in dict.fromkeys(rule for each in of_rule for rule in each):
        forms = [each.get(rule) for each in of_rule]
        if ours.metrics.intersection(filter(None, forms)):
            yield line(f"↳ scored {escape(rule)}", ours, forms)
    best = [_best_beam(ours, key) for key in keys]
    if any(best):
        of_beam = [f"{key}_beam{width}" if width else None for key, width in zip(keys, best, strict=True)]
        yield line(
            "↳ with the beam that is best on test", ours, of_beam, [f" ({width})" * bool(width) for width in best]
        )


def _others(board: Board, ours: Runs, keys: Sequence[str]) -> Iterator[Runs]:
    """Runs on the same data that differ in the encoder alone, or in the recipe alone."""
    model = next(group for group in by_metric(board.paper, board.runs).values() if ours in group)
    for other in model:
        same = [getattr(ours.first, name) == getattr(other.first, name) for name in ("variant", "encoder")]
        if other is not ours and any(same) and _data(other) == _data(ours) and other.metrics.intersection(keys):
            yield other


def _data(runs: Runs) -> tuple[str, str, str]:
    return runs.data, runs.first.split, runs.first.protocol


def _best_beam(runs: Runs, key: str) -> int:
    """The width with the best value of a metric; 0 where it was not tried."""
    tried = {width: runs.estimate(f"{key}_beam{width}") for width in BEAMS}
    means = {width: found.mean for width, found in tried.items() if found}
    return max(means, key=lambda width: means[width], default=0)


def _value(runs: Runs, key: str | None, number: Reported) -> str:
    """The mean of a metric, with the sign of its verdict against a number; a dash where there is none."""
    estimate = runs.estimate(key) if key else None
    if key is None or estimate is None:
        return DASH
    judged: Verdict = verdict(replace(number, metric=key), estimate.values, estimate.interval)
    return f"{estimate.mean:.{metric(key).digits}f}\u00a0{cells.SIGNS[judged.status]}"
