"""leaderboards/README.md: every paper with what was reproduced of it, and how to read a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from capbench.evidence.probes import ProbeRecord
from capbench.evidence.records import SYSTEMS
from capbench.evidence.reliability import ReliabilityRecord
from capbench.evidence.results import Results
from capbench.leaderboard import cells, legend, reliability, systems
from capbench.leaderboard.board import Board
from capbench.leaderboard.markdown import DASH, code_block, escape, table
from capbench.leaderboard.page import GENERATED, claims
from capbench.timing.records import TimingRecord


def page(
    boards: Sequence[Board],
    results: Results,
    timings: Sequence[TimingRecord] = (),
    probes: Sequence[ProbeRecord] = (),
    faults: Sequence[ReliabilityRecord] = (),
) -> str:
    """The index as markdown."""
    probed = ", ".join(sorted({record.dataset for record in probes}))
    devices = ", ".join(escape(name) for name in sorted({record.device for record in timings}))
    own, others = "the paper's own numbers", "other systems' numbers (baselines)"
    head = ["paper", "data sets", "seeds run", own, others, "claims"]
    blocks = [
        f"<!-- {GENERATED} -->",
        "# Leaderboards",
        "One page a paper: our runs, the paper's numbers and claims, and what each number rests on.",
        table(head, map(_line, boards), "llrlll"),
        "What the core's operations cost beside their strongest baselines: [kernels](kernels.md), "
        + (f"on {devices}." if devices else "not yet timed."),
        "What an encoder's features tell of the words of captions: [encoders](encoders.md), "
        + (f"on {escape(probed)}." if probed else "not yet measured."),
        *_systems(results),
        *_reliability(faults),
        *legend.blocks(),
        "## How the pages are made",
        "From the records in `results/` and the papers' reported numbers alone. To make the pages again, to see "
        "whether they are up to date, and to have every number as JSON:",
        code_block(["capbench leaderboard", "capbench leaderboard --check", "capbench leaderboard --json"]),
    ]
    known = {SYSTEMS, *(board.paper.name for board in boards)}
    if strangers := Counter(record.paper for record in results.records if record.paper not in known):
        names = ", ".join(f"{escape(name)} ({count})" for name, count in sorted(strangers.items()))
        blocks.append(f"Records of unknown papers: {names}.")
    return "\n\n".join(blocks) + "\n"


def _systems(results: Results) -> Iterator[str]:
    """The line on other systems, where there are any."""
    if names := {record.preset for record in results.select(paper=SYSTEMS).records}:
        yield f"What the outputs of other systems scored: [other systems]({systems.PAGE}), {len(names)} so far."


def _reliability(records: Sequence[ReliabilityRecord]) -> Iterator[str]:
    """The line on faults, where a record tells of them."""
    if records:
        counts = f"{reliability.survived(records)} survived"
        yield f"What is done to the suite on purpose: [reliability]({reliability.PAGE}), {counts}."


def _line(board: Board) -> list[str]:
    names = dict.fromkeys(runs.first.dataset if runs.canonical else "other data" for runs in board.runs)
    own, others = board.tally("target"), board.tally("baseline")
    return [
        f"[{escape(board.paper.title)}]({board.paper.name}.md)",
        ", ".join(map(escape, names)) or DASH,
        str(sum(len(runs.records) for runs in board.runs)),
        cells.counts(own) if own else DASH,
        cells.counts(others) if others else DASH,
        claims(board) if board.outcomes else DASH,
    ]
