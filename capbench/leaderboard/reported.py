"""The paper's own tables, with our runs under the same conditions below each of their rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from capbench.evidence.verdicts import Reported, Verdict
from capbench.leaderboard import cells
from capbench.leaderboard.board import Board, Match
from capbench.leaderboard.markdown import DASH, Notes, code, escape, table
from capbench.leaderboard.pooled import Runs
from capbench.metrics.registry import Metric, columns, families

_TABLE_AND_ROW = re.compile(r"(Table \S+), row (.+)")
_CONFIDENCE = {"memory": "†", "one-source": "°"}


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

    def verdicts(self) -> list[tuple[Runs, dict[str, Verdict]]]:
        """Our runs beside it, with a verdict by metric."""
        by_runs: dict[Runs, dict[str, Verdict]] = {}
        for match in self.matches:
            if match.runs is not None:
                by_runs.setdefault(match.runs, {})[match.reported.metric] = match.verdict
        return list(by_runs.items())


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
    by_table: dict[str, list[System]] = {}
    for system in chosen:
        by_table.setdefault(system.table, []).append(system)
    for name, rows in by_table.items():
        data = {row.data for row in rows}
        yield f"**{escape(name)}**" + (f" ({escape(rows[0].data)})" if len(data) == 1 else "")
        yield from _table(board, rows, several=len(data) > 1)


def _table(board: Board, rows: Sequence[System], several: bool) -> Iterator[str]:
    """One table; `several` says that its rows are of several data sets or protocols."""
    shown = families(columns({key for row in rows for key in row.numbers}, lesser=True))
    head = ["row"] * any(row.place for row in rows) + ["system", "encoder, crop, trained on"] + ["data"] * several
    notes, lines = Notes(), []
    for row in rows:
        first = {"row": row.place.partition(" (")[0], "system": row.any.system, "data": row.data}
        cells_of = {name: escape(word) for name, word in first.items()} | {"encoder, crop, trained on": theirs(row)}
        numbers = [values(row, members) for _, members in shown]
        lines.append([*(cells_of[name] for name in head), *numbers, _state(board, row, notes)])
        for runs, verdicts in row.verdicts():
            seeds = f", {len(runs.records)} seed{'s' if len(runs.records) > 1 else ''}"
            cells_of = {"row": "", "data": "", "system": f"↳ ours: {cells.preset(runs, board.paper, notes)}"}
            cells_of["encoder, crop, trained on"] = cells.model(runs) + seeds
            numbers = [_beside(runs, row, members, notes, verdicts) for _, members in shown]
            lines.append([*(cells_of[name] for name in head), *numbers, ""])
    yield table([*head, *(heading for heading, _ in shown), "ours"], lines, "l" * (len(head) + len(shown) + 1))
    if str(notes):
        yield str(notes)


def _beside(runs: Runs, row: System, members: Sequence[Metric], notes: Notes, verdicts: Mapping[str, Verdict]) -> str:
    """Our numbers of one column, those that the row has."""
    printed = [entry for entry in members if entry.key in row.numbers]
    return cells.ours(runs, printed, notes, verdicts) if printed else DASH


def theirs(row: System) -> str:
    """A reported row's encoder, crop and training set."""
    number = row.any
    return ", ".join(escape(word) for word in (number.encoder, number.crop, number.train_split) if word) or DASH


def values(row: System, members: Sequence[Metric]) -> str:
    """A reported row's numbers of one column, in the paper's digits."""
    numbers = [row.numbers.get(entry.key) for entry in members]
    if not any(numbers):
        return DASH
    return " / ".join(escape(n.value) + _CONFIDENCE.get(n.confidence, "") if n else DASH for n in numbers)


def _state(board: Board, row: System, notes: Notes) -> str:
    """What we have of a reported row: nothing to say where our runs follow, else why they do not."""
    if row.any.role == "context":
        return "context"
    states: Mapping[str, Verdict] = {match.preset: match.verdict for match in row.matches if match.runs is None}
    words = []
    for preset, judged in states.items():
        if judged.status != "pending":
            words.append(f"{code(preset)}: {judged.status}{notes.mark(judged.reason)}")
        elif preset in board.paper.presets(row.any.dataset):
            words.append(f"{code(preset)}: not run")
        else:
            reason = f"there is no preset {preset} on {row.any.dataset}"
            words.append(f"{code(preset)}: not run{notes.mark(reason)}")
    return "; ".join(words)
