"""The paper's own tables, with our runs under the same conditions below each of their rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from capbench.base.grouping import grouped
from capbench.evidence.verdicts import Reported, Verdict
from capbench.leaderboard import cells
from capbench.leaderboard.board import Board, Match, verdicts
from capbench.leaderboard.markdown import DASH, Notes, code, escape, table
from capbench.metrics.registry import Metric, columns, families

_TABLE_AND_ROW = re.compile(r"(Table \S+), row (.+)")
CONFIDENCE = {"memory": "†", "one-source": "°"}


@dataclass
class System:
    """One row of a paper's table: a system's numbers by metric, and what our runs make of them."""

    table: str
    place: str  # the row's number; empty where the paper has none
    numbers: dict[str, Reported] = field(default_factory=dict)
    matches: list[Match] = field(default_factory=list)

    @property
    def any(self) -> Reported:
        """Any of its numbers, for what all of them share."""
        return next(iter(self.numbers.values()))

    @property
    def data(self) -> str:
        return ", ".join((self.any.dataset, self.any.protocol))


def systems(board: Board) -> list[System]:
    """The rows of the paper's tables, in the order of reported.csv."""
    by_row: dict[tuple[object, ...], System] = {}
    for match in board.matches:
        number = match.reported
        place = _TABLE_AND_ROW.fullmatch(number.table)
        shared = ("table", "dataset", "protocol", "split", "system", "preset", "encoder", "crop", "train_split")
        key = (*(getattr(number, name) for name in shared), number.setting)
        table_of, row = place.groups() if place else (number.table, "")
        system = by_row.setdefault(key, System(table_of, row))
        system.numbers[number.metric] = number
        system.matches.append(match)
    return list(by_row.values())


def tables(board: Board, chosen: Sequence[System]) -> Iterator[str]:
    """The paper's tables as markdown, our runs below the rows they are compared with."""
    for name, rows in grouped(chosen, attrgetter("table")).items():
        several = len({row.data for row in rows}) > 1  # data sets or protocols
        yield f"**{escape(name)}**" + ("" if several else f" ({escape(rows[0].data)})")
        yield from _table(board, rows, several)


def _table(board: Board, rows: Sequence[System], several: bool) -> Iterator[str]:
    shown = families(columns({key for row in rows for key in row.numbers}, lesser=True))
    placed = any(row.place for row in rows)

    def start(place: str, system: str, model: str, data: str) -> list[str]:
        return [place] * placed + [system, model] + [data] * several

    notes, lines = Notes(), []
    for row in rows:
        number, numbers = row.any, [values(row, members) for _, members in shown]
        model = ", ".join(escape(word) for word in (number.encoder, number.crop, number.train_split) if word) or DASH
        first = start(escape(row.place.partition(" (")[0]), escape(number.system), model, escape(row.data))
        lines.append([*first, *numbers, _state(board, row, notes)])
        for runs, judged in verdicts(row.matches).items():
            model = f"{cells.model(runs)}, {len(runs.records)} seed{'s' if len(runs.records) > 1 else ''}"
            first = start("", f"↳ ours: {cells.preset(runs, board.paper, notes)}", model, "")
            printed = ([entry for entry in members if entry.key in row.numbers] for _, members in shown)
            lines.append([*first, *(cells.ours(runs, each, notes, judged) if each else DASH for each in printed), ""])
    head = [*start("row", "system", "encoder, crop, trained on", "data"), *(heading for heading, _ in shown), "ours"]
    yield table(head, lines, "l" * len(head))
    if str(notes):
        yield str(notes)


def values(row: System, members: Sequence[Metric]) -> str:
    """A reported row's numbers of one column, in the paper's digits."""
    numbers = [row.numbers.get(entry.key) for entry in members]
    if not any(numbers):
        return DASH
    return " / ".join(escape(n.value) + CONFIDENCE.get(n.confidence, "") if n else DASH for n in numbers)


def _state(board: Board, row: System, notes: Notes) -> str:
    """Why each preset of a reported row that has no run beside it has none."""
    states: Mapping[str, Verdict] = {match.preset: match.verdict for match in row.matches if match.runs is None}
    words = []
    for preset, judged in states.items():
        if judged.status != "pending":
            words.append(f"{code(preset)}: {judged.status}{notes.mark(judged.reason)}")
        else:
            known = preset in board.paper.presets(row.any.dataset)
            note = "" if known else notes.mark(f"there is no preset {preset} on {row.any.dataset}")
            words.append(f"{code(preset)}: not run{note}")
    return "; ".join(words)
