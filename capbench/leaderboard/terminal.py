"""What a command shows at its end: the means of its own runs, the others apart, and whether they agree."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape as rich_escape
from rich.table import Table

from capbench.evidence.records import Result
from capbench.evidence.results import Results
from capbench.leaderboard.agreement import compare, sentences
from capbench.leaderboard.markdown import DASH, plain
from capbench.leaderboard.page import first_metrics
from capbench.leaderboard.pooled import Runs, by_metric, gather, parts, setting
from capbench.metrics.registry import Metric, families
from capbench.runs.paper import Paper


def closing(paper: Paper, committed: Results, local: Results, made: Collection[str]) -> Iterator[Table | str]:
    """The tables and sentences at the end of a command that made the local records of these file names.

    First the command's own runs, with a column that says which agree with the committed records; apart from them the
    committed records and this machine's earlier ones; then a sentence for each setting that was compared.
    """
    mine = [record for record in local.records if record.file in made]
    earlier = [record for record in local.without(committed).records if record.file not in made]
    agreements = compare(mine, committed.select(paper=paper.name).records)
    words = {each.setting: each.status for each in agreements if each.status in ("agrees", "differs")}
    for heading, shown in (
        ("Runs of this command", [*tables(paper, mine, words)]),
        ("Committed records", [*tables(paper, committed.records)]),
        ("Earlier records of this machine", [*tables(paper, earlier)]),
    ):
        if shown:
            yield heading
            yield from shown
    yield from sentences(agreements)


def tables(
    paper: Paper, records: Sequence[Result], words: Mapping[tuple[str, ...], str] | None = None
) -> Iterator[Table]:
    """The means over seeds, a table that fits a terminal for each data set, split, protocol and encoder.

    `words` says by setting which agree with the committed records.
    """
    groups = gather(paper, Results(Path(), tuple(records)))
    for kind in by_metric(paper, groups).values():
        for values, group in parts(kind, "data", "split", "protocol", "encoder").items():
            yield _table(values, group, words or {})


def _table(values: tuple[str, ...], group: Sequence[Runs], words: Mapping[tuple[str, ...], str]) -> Table:
    shown = families(first_metrics({key for runs in group for key in runs.metrics}, set()))
    dataset, split, protocol, encoder = map(plain, values)
    title = f"{dataset}, {split} split, protocol {protocol}, encoder {encoder}; means over seeds"
    table = Table(box=SIMPLE_HEAD, padding=0, title=rich_escape(title))
    for name in ("preset", *(["committed"] if words else [])):
        table.add_column(name, no_wrap=True)
    for name in ("seeds", *(heading for heading, _ in shown)):
        table.add_column(name, justify="right")
    for runs in group:
        cells = ["/".join(_mean(runs, entry) for entry in entries) for _, entries in shown]
        agrees = [words.get(setting(runs.first), DASH)] if words else []
        table.add_row(rich_escape(plain(runs.first.variant)), *agrees, str(len(runs.records)), *cells)
    return table


def _mean(runs: Runs, entry: Metric) -> str:
    estimate = runs.estimate(entry.key)
    return f"{estimate.mean:.{entry.digits}f}" if estimate else DASH
