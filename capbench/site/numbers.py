"""The table of all numbers: ours, the papers' and other systems', a row each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from capbench.evidence.records import Result
from capbench.leaderboard.board import Board, Match
from capbench.leaderboard.cells import SIGNS
from capbench.leaderboard.pooled import Runs
from capbench.leaderboard.reported import CONFIDENCE
from capbench.metrics import registry
from capbench.metrics.registry import Metric

SECTIONS = {  # by the role of what is reported
    "target": ("own", "The papers' own numbers", "What a paper reports of its own system, beside ours of its recipe."),
    "baseline": (
        "baselines", "Other systems, as baselines",
        "What a paper reports of others. A verdict says how ours does beside them, and nothing of a reproduction.",
    ),
    "": ("ours", "Ours alone", "What no paper reports under the same protocol, scenes among it."),
    "context": ("context", "For context", "Reported numbers that ours are not compared with."),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Number:
    """A metric of some runs, of a paper, or of both."""

    paper: str
    metric: Metric
    runs: Runs | None
    match: Match | None  # None for a metric of ours that no paper reports

    @property
    def dataset(self) -> str:
        return self.runs.data if self.runs else self.match.reported.dataset if self.match else ""

    @property
    def protocol(self) -> str:
        """Split and protocol."""
        of = self.runs.first if self.runs else self.match.reported if self.match else None
        return f"{of.split}, {of.protocol}" if of else ""

    @property
    def encoder(self) -> str:
        """Ours; the paper's where there are no runs of ours."""
        return self.runs.first.encoder if self.runs else self.match.reported.encoder if self.match else ""

    @property
    def sees(self) -> str:
        """What the model sees of an image."""
        return self.runs.first.sees if self.runs else self.match.reported.crop if self.match else ""

    @property
    def recipe(self) -> str:
        return self.runs.first.variant if self.runs else self.match.preset if self.match else ""

    @property
    def ours(self) -> str:
        """Our mean and half of its 95 % interval."""
        estimate = self.runs.estimate(self.metric.key) if self.runs else None
        if estimate is None:
            return ""
        half = f" ± {estimate.half:.{self.metric.digits}f}" if estimate.half is not None else ""
        return f"{estimate.mean:.{self.metric.digits}f}{half}"

    @property
    def reported(self) -> str:
        """The paper's own digits on our scale, with the mark of a number that is not confirmed."""
        if self.match is None:
            return ""
        number = self.match.reported
        digits = str(Decimal(number.value).scaleb(2)) if number.unit == "fraction" else number.value
        return digits + CONFIDENCE.get(number.confidence, "")

    @property
    def system(self) -> str:
        """Whose number is reported, and where."""
        return f"{self.match.reported.system}, {self.match.reported.table}" if self.match else ""

    @property
    def records(self) -> tuple[Result, ...]:
        return self.runs.records if self.runs else ()

    @property
    def verdict(self) -> str:
        return self.match.verdict.status if self.match else ""

    @property
    def sign(self) -> str:
        return SIGNS.get(self.verdict, "")

    @property
    def reason(self) -> str:
        """Why there is no verdict."""
        return self.match.verdict.reason if self.match else ""


@dataclass(frozen=True)
class Section:
    """Numbers that are shown together, apart from the others."""

    name: str  # of its anchor
    title: str
    words: str
    rows: tuple[Number, ...]  # those with runs of ours first


def sections(boards: Sequence[Board]) -> list[Section]:
    """Every number of the boards: the papers' own and other systems' apart; sections without a row are left out."""
    rows = sorted((row for each in boards for row in _numbers(each)), key=lambda row: row.runs is None)
    by_role = {role: tuple(row for row in rows if _role(row) == role) for role in SECTIONS}
    return [Section(*SECTIONS[role], rows) for role, rows in by_role.items() if rows]


def _role(row: Number) -> str:
    return row.match.reported.role if row.match else ""


def _numbers(board: Board) -> Iterator[Number]:
    """Every number of a paper's board, those that it reports first."""
    name = board.paper.name
    for match in board.matches:
        yield Number(name, registry.metric(match.reported.metric), match.runs, match)
    beside = {(match.runs, match.reported.metric) for match in board.matches if match.runs}
    for runs in board.runs:
        for metric in registry.columns(runs.metrics, lesser=True):
            if (runs, metric.key) not in beside:
                yield Number(name, metric, runs, None)
