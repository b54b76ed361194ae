"""leaderboards/README.md: every paper, what has been run of it, and what came out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from capbench.evidence.results import Results
from capbench.leaderboard import cells
from capbench.leaderboard.comparison import gather, set_beside
from capbench.leaderboard.markdown import DASH, code_block, escape, table
from capbench.leaderboard.page import GENERATED, VERDICTS, verdict_of
from capbench.runs.paper import Paper
from capbench.timing.records import TimingRecord


def page(papers: Mapping[str, Paper], results: Results, timings: Sequence[TimingRecord] = ()) -> str:
    """The index as markdown."""
    lines = [_line(paper, results) for paper in papers.values()]
    devices = ", ".join(escape(name) for name in sorted({record.device for record in timings}))
    blocks = [
        f"<!-- {GENERATED} -->",
        "# Leaderboards",
        "One page a paper: our runs, the paper's numbers and claims beside them, and what each number rests on.",
        table(["paper", "records (seeds counted)", "data sets", "reported numbers", "claims"], lines, "lrlll"),
        "What the core's operations cost beside their rivals: [kernels](kernels.md), "
        + (f"on {devices}." if devices else "not yet timed."),
        "A verdict sets our mean against a reported number of the same data set, split and protocol:",
        VERDICTS,
        "The pages are made from the records in `results/` and the papers' own tables, and from nothing else. To "
        "make them again, to see whether they are up to date, and to have every number as JSON:",
        code_block(["capbench leaderboard", "capbench leaderboard --check", "capbench leaderboard --json"]),
    ]
    strangers = Counter(record.paper for record in results.records if record.paper not in papers)
    if strangers:
        names = ", ".join(f"{escape(name)} ({count})" for name, count in sorted(strangers.items()))
        blocks.append(f"Records of papers that are not here: {names}.")
    return "\n\n".join(blocks) + "\n"


def _line(paper: Paper, results: Results) -> list[str]:
    groups = gather(paper, results)
    mine = results.select(paper=paper.name)
    judged = [verdict for number in paper.reported for _, verdict in set_beside(number, groups)]
    waiting = sum(number.role != "context" and not set_beside(number, groups) for number in paper.reported)
    numbers = ", ".join(filter(None, (cells.tally(judged), f"without a run of ours\u00a0{waiting}" if waiting else "")))
    outcomes = Counter[str](verdict_of(claim, mine).status for claim in paper.claims)
    statuses = ("holds", "fails", "undecided", "pending")
    claims = ", ".join(f"{status}\u00a0{outcomes[status]}" for status in statuses if outcomes[status])
    count = sum(len(runs.records) for runs in groups)
    names = dict.fromkeys(runs.first.dataset if runs.canonical else "other data" for runs in groups)
    sets = ", ".join(map(escape, names))
    return [
        f"[{escape(paper.title)}]({paper.name}.md)",
        str(count),
        sets or DASH,
        numbers or DASH,
        claims or DASH,
    ]
