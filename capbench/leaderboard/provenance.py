"""The last part of a page: the records of each setting, what made them, and the commands that make them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from capbench.evidence.records import Result
from capbench.leaderboard import cells
from capbench.leaderboard.board import Board
from capbench.leaderboard.commands import again
from capbench.leaderboard.markdown import code, code_block, escape, table
from capbench.leaderboard.pooled import Runs


def section(board: Board) -> Iterator[str]:
    """The records by setting, the machines that made them, and their commands, as markdown blocks."""
    if not board.runs:
        yield "There is no record yet."
        return
    yield "A record holds its recipe, curve, fingerprints, versions, energy and memory; its link is the seed's number."
    if replaced := board.results.superseded:
        yield f"Replaced by a later record of the same setting and seed, and not shown: {replaced}."
    machines: dict[str, str] = {}
    head = ["recipe", "data set, protocol", "seeds", "time", "commit", "machine"]
    yield table(head, [_line(runs, machines) for runs in board.runs], "llllll")
    yield "\n".join(f"- {name}: {escape(words)}" for words, name in machines.items())
    if commands := again(board):
        yield "These commands make the records again, from their commit; each record holds its own:"
        yield code_block(commands)


def _line(runs: Runs, machines: dict[str, str]) -> list[str]:
    """A setting's records; `machines` gives each machine a name at its first use."""
    records, first = runs.records, runs.first
    seconds = [record.wall_seconds for record in records]
    names = (machines.setdefault(_machine(record), f"E{len(machines) + 1}") for record in records)
    return [
        ", ".join([code(first.variant), cells.model(runs)]),
        ", ".join(escape(word) for word in (runs.data, first.protocol) if word),
        cells.seed_links(runs),
        _once(map(cells.duration, (min(seconds), max(seconds))), " to "),
        _once(code(record.commit[:10]) + " + changes" * record.dirty for record in records),
        _once(names),
    ]


def _once(words: Iterable[str], between: str = ", ") -> str:
    """What the seeds have, once where they have the same."""
    return between.join(dict.fromkeys(words))


def _machine(record: Result) -> str:
    words = [record.device or "device unknown", f"{record.threads or 'unknown'} threads"]
    words += [f"{record.processes} processes"] * (record.processes > 1)
    words += filter(None, (record.instruction_set, record.blas, record.precision))
    return f"{', '.join(words)}; " + ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items()))
