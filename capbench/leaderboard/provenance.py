"""The last part of a page: each record, what made it, and the command that makes it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import quote

from capbench.evidence.records import Result
from capbench.evidence.results import Results, data_name
from capbench.leaderboard import cells
from capbench.leaderboard.comparison import Runs, marks
from capbench.leaderboard.markdown import DASH, code, code_block, escape, plain, table
from capbench.runs.paper import Paper

_HEAD = (
    "#", "record", "data set, protocol", "seed", "best epoch", "wall time", "energy", "memory",
    "started (UTC)",
    "commit", "made on", "made from", "marks",
)  # fmt: skip


class Legend:
    """Numbers for descriptions that many records share: E1, E2, ..."""

    def __init__(self, letter: str) -> None:
        self.letter, self.entries = letter, dict[str, str]()

    def name(self, description: str) -> str:
        return self.entries.setdefault(description, f"{self.letter}{len(self.entries) + 1}")

    def lines(self) -> list[str]:
        return [f"- {name}: {escape(description)}" for description, name in self.entries.items()]


def section(paper: Paper, results: Results, groups: Sequence[Runs]) -> Iterator[str]:
    """The records as a table, what made them, and their commands, as markdown blocks."""
    records = [record for runs in groups for record in runs.records]
    if not records:
        yield "There is no record yet."
        return
    superseded = results.select(paper=paper.name).superseded
    if superseded:
        yield f"Superseded by a later record of the same setting and seed, and not shown: {superseded}."
    made_on, made_from = Legend("E"), Legend("D")
    lines = [_line(number, record, paper, made_on, made_from) for number, record in enumerate(records, start=1)]
    yield table(_HEAD, lines, "rllrrrrrlllll")
    yield "\n".join(made_on.lines() + made_from.lines())
    yield "Each record is made again by its command, from its commit:"
    commands: dict[str, list[str]] = {}
    for number, record in enumerate(records, start=1):
        commands.setdefault(plain(record.command, 2000) or "(no command in the record)", []).append(str(number))
    yield code_block(f"{command}  # {', '.join(numbers)}" for command, numbers in commands.items())


def _line(number: int, record: Result, paper: Paper, made_on: Legend, made_from: Legend) -> list[str]:
    parts = [record.device or "device unknown", f"{record.threads or 'unknown'} threads"]
    parts += filter(None, (record.instruction_set, record.blas, record.precision))
    machine = f"{', '.join(parts)}; "
    machine += ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items()))
    prints = (record.dataset_fingerprint[:12] or "unknown", record.features_fingerprint[:12] or "unknown")
    data = f"data set {prints[0]}, features {prints[1]} (SHA-256), "
    data += f"{record.vocabulary_size:,} words, {record.parameters:,} parameters"
    epochs = f"{record.best_epoch + 1} of {len(record.curve)}" if record.curve else DASH
    energy = f"{record.energy_joules / 1000:.1f}\u00a0kJ" if record.energy_joules is not None else f"{DASH} (not read)"
    peak = record.peak_memory_bytes
    memory = f"{peak / 2**20:,.0f}\u00a0MiB" if peak is not None else f"{DASH} (not read)"
    commit = code(record.commit[:10]) + (" + changes" if record.dirty else "")
    found = marks(record, paper)
    name = escape(record.preset)
    link = f"[{name}](results/{quote(record.file)})" if record.file else name
    return [
        str(number), link, ", ".join(escape(word) for word in (data_name(record), record.protocol) if word),
        str(record.seed), epochs, cells.duration(record.wall_seconds), energy, memory,
        escape(record.started[:16]),
        commit, made_on.name(machine), made_from.name(data), escape("; ".join(found)) or "none",
    ]  # fmt: skip
