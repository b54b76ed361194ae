"""The paper's own tables, with our runs under the same conditions below each of their rows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from capbench.evidence.results import Results
from capbench.evidence.verdicts import Reported, Verdict, judge
from capbench.leaderboard import cells
from capbench.leaderboard.columns import Metric, columns
from capbench.leaderboard.comparison import Runs, set_beside
from capbench.leaderboard.markdown import DASH, Notes, code, code_block, details, escape, table
from capbench.runs.paper import Paper

_TABLE_AND_ROW = re.compile(r"(Table \S+), row (.+)")
_CONFIDENCE = {"memory": "†", "one-source": "°"}


@dataclass
class System:
    """One row of a paper's table: a system with its numbers by metric."""

    place: str
    numbers: dict[str, Reported] = field(default_factory=dict)

    @property
    def any(self) -> Reported:
        """Any of its numbers, for what all of them share."""
        return next(iter(self.numbers.values()))

    def beside(self, groups: Sequence[Runs]) -> list[tuple[Runs, dict[str, Verdict]]]:
        """Our runs under the same conditions, with a verdict by metric."""
        found: dict[int, tuple[Runs, dict[str, Verdict]]] = {}
        for metric, number in self.numbers.items():
            for runs, verdict in set_beside(number, groups):
                found.setdefault(id(runs), (runs, {}))[1][metric] = verdict
        return list(found.values())


def systems(reported: Sequence[Reported]) -> dict[tuple[str, str, str, str], list[System]]:
    """The rows by (table, data set, protocol, split), in the order of the file."""
    tables: dict[tuple[str, str, str, str], dict[tuple[str, ...], System]] = {}
    for number in reported:
        known = _TABLE_AND_ROW.fullmatch(number.table)
        name, place = known.groups() if known else (number.table, "")
        part = tables.setdefault((name, number.dataset, number.protocol, number.split), {})
        key = (
            place,
            number.system,
            number.preset,
            number.encoder,
            number.crop,
            number.train_split,
            number.setting,
        )
        part.setdefault(key, System(place)).numbers[number.metric] = number
    return {key: list(part.values()) for key, part in tables.items()}


def section(paper: Paper, results: Results, groups: Sequence[Runs]) -> Iterator[str]:
    """The paper's tables as markdown blocks, those with runs of ours first."""
    tables = systems(paper.reported).items()
    for (name, dataset, protocol, split), rows in sorted(tables, key=lambda entry: not _met(entry[1], groups)):
        yield f"### {escape(name)}: {escape(dataset)}, {escape(split)} split, protocol {escape(protocol)}"
        yield from _table(paper, results, groups, rows)


def _met(rows: Sequence[System], groups: Sequence[Runs]) -> bool:
    return any(row.beside(groups) for row in rows)


def _table(paper: Paper, results: Results, groups: Sequence[Runs], rows: Sequence[System]) -> Iterator[str]:
    shown = columns({metric for row in rows for metric in row.numbers}, lesser=True)
    numbered = any(row.place for row in rows)
    notes, lines = Notes(), []
    waiting: dict[str, list[str]] = {}
    for row in rows:
        beside = row.beside(groups)
        state = _state(paper, results, row, beside, notes, waiting)
        lines.append([*_place(row, numbered), *(_reported(row, metric) for metric in shown), state])
        lines += [_ours(paper, runs, verdicts, shown, numbered, notes) for runs, verdicts in beside]
    first = [*(["row"] if numbered else []), "system", "encoder, crop, training set"]
    yield table(
        [*first, *(metric.head for metric in shown), "verdict"], lines, "l" * len(first) + "r" * len(shown) + "l"
    )
    if str(notes):
        yield str(notes)
    if waiting:
        commands = [f"{command}  # for {', '.join(places)}" for command, places in waiting.items()]
        yield "What would fill the pending rows, with the paper's encoder (another one is compared too, and named):"
        yield code_block(commands)
    yield details("Settings and sources of these numbers", _sources(rows))


def _place(row: System, numbered: bool) -> list[str]:
    number = row.any
    where = ", ".join(escape(word) for word in (number.encoder, number.crop, number.train_split) if word)
    return [*([escape(_short(row.place))] if numbered else []), escape(number.system), where]


def _short(place: str) -> str:
    """Without the remark in brackets, which stands with the sources."""
    return place.partition(" (")[0]


def _reported(row: System, metric: Metric) -> str:
    if metric.key not in row.numbers:
        return DASH
    number = row.numbers[metric.key]
    return escape(number.value) + _CONFIDENCE.get(number.confidence, "")


def _ours(
    paper: Paper,
    runs: Runs,
    verdicts: Mapping[str, Verdict],
    shown: Sequence[Metric],
    numbered: bool,
    notes: Notes,
) -> list[str]:
    words = [f"↳ ours: {cells.preset(runs, paper, notes)}", cells.setting(runs)]
    numbers = []
    for metric in shown:
        sign = cells.sign(verdicts[metric.key], metric) if metric.key in verdicts else ""
        number = cells.ours(runs, metric, notes)
        numbers.append(f"**{number}** {sign}".rstrip() if not number.startswith(DASH) else number)
    tests = dict.fromkeys(verdict.test for verdict in verdicts.values() if verdict.test)
    judged = cells.tally(verdicts.values()) + (f" ({escape('; '.join(tests))})" if tests else "")
    return [*([""] if numbered else []), *words, *numbers, judged]


def _state(
    paper: Paper,
    results: Results,
    row: System,
    beside: Sequence[tuple[Runs, Mapping[str, Verdict]]],
    notes: Notes,
    waiting: dict[str, list[str]],
) -> str:
    """What a reported row's last cell says: nothing where our runs follow, else why they do not."""
    number, have = row.any, {runs.first.preset for runs, _ in beside}
    if number.role == "context":
        return "context"
    words = []
    for preset in number.presets:
        if preset in have:
            continue
        judged = judge(number, results.select(paper=paper.name), preset)
        if judged.status != "pending":
            words.append(f"{code(preset)}: {judged.status}{notes.mark(judged.reason)}")
        elif preset not in paper.presets(number.dataset):
            words.append(f"{code(preset)}: pending{notes.mark(f'there is no preset {preset} on {number.dataset}')}")
        else:
            words.append(f"{code(preset)}: pending")
            where = _short(row.place) or number.system
            places = waiting.setdefault(_command(paper, number, preset), [])
            if where not in places:
                places.append(where)
    if have:
        words.insert(0, f"{'baseline, ' if number.role == 'baseline' else ''}compared below")
    return "; ".join(words)


def _command(paper: Paper, number: Reported, preset: str) -> str:
    words = ["capbench", "run", paper.name.replace("_", "-"), "--preset", preset, "--dataset", number.dataset]
    if number.role == "target" and number.encoder:
        words += ["--encoder", number.encoder]
    return shlex.join(words)


def _sources(rows: Sequence[System]) -> str:
    lines = []
    for row in rows:
        by_source: dict[str, list[str]] = {}
        for metric in columns(row.numbers, lesser=True):
            by_source.setdefault(row.numbers[metric.key].source, []).append(metric.head)
        name = f"{row.place}, {row.any.system}" if row.place else row.any.system
        setting = f" {escape(row.any.setting)}." if row.any.setting else ""
        lines.append(f"- {escape(name)}:{setting}")
        lines += [f"  - {', '.join(heads)}: {escape(source)}" for source, heads in by_source.items()]
    return "\n".join(lines)
