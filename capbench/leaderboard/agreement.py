"""Whether the runs that a command has just made agree with the committed records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from capbench.base.grouping import grouped
from capbench.evidence.records import Result
from capbench.evidence.results import Results
from capbench.leaderboard.cells import seeds
from capbench.leaderboard.markdown import plain
from capbench.leaderboard.pooled import changes, setting
from capbench.metrics.registry import Metric, metric
from capbench.metrics.significance import seed_interval

HEADLINES = ("bleu4", "rsum", "perplexity", "pointing")  # the first that all records have is compared
Status = Literal["agrees", "differs", "changed", "alone"]


@dataclass(frozen=True)
class Agreement:
    """The new records of a setting beside the committed ones, in one metric."""

    new: tuple[Result, ...]
    status: Status  # "changed": the committed records have another recipe; "alone": there is none
    metric: Metric | None = None
    here: float = math.nan  # the mean of the new records
    there: float = math.nan  # the mean of the committed ones
    margin: float = math.nan  # how far the two may lie apart

    @property
    def setting(self) -> tuple[str, ...]:
        return setting(self.new[0])


def compare(new: Iterable[Result], committed: Iterable[Result]) -> list[Agreement]:
    """One agreement for each setting of the new records, in their order; all are of one paper.

    Committed records count with the same setting and recipe, the latest of each seed.
    """
    there = grouped(committed, setting)
    return [_agreement(_latest(made), there.get(key, [])) for key, made in grouped(new, setting).items()]


def margin(key: str, here: Sequence[float], there: Sequence[float]) -> float:
    """How far the mean of new seeds may lie from that of committed ones.

    Half of the 95 % prediction interval, t(n - 1) s √(1/m + 1/n), for m new seeds and n committed ones of standard
    deviation s. Never less than the tolerance of a verdict, which is all that one committed seed gives.
    """
    least = metric(key).allowed(sum(there) / len(there))
    if len(there) < 2:
        return least
    of_mean = seed_interval(there)  # ± t(n - 1) s / √n
    return max(least, (of_mean.high - of_mean.low) / 2 * math.sqrt(1 + len(there) / len(here)))


def sentences(agreements: Sequence[Agreement]) -> Iterator[str]:
    """A line for each setting that was compared, and one for all that have nothing to compare with."""
    alone = []
    for each in agreements:
        if each.status == "alone":
            alone.append(_name(each, agreements))
        else:
            yield f"{_name(each, agreements)}: {_compared(each)}"
    if alone:
        which = f": {'; '.join(alone)}" if len(alone) < len(agreements) else ""
        yield f"no committed record to compare with{which}"


def _latest(records: Sequence[Result]) -> tuple[Result, ...]:
    return Results(Path(), tuple(records)).latest.records


def _agreement(new: tuple[Result, ...], committed: Sequence[Result]) -> Agreement:
    same = _latest([record for record in committed if record.recipe and not changes(new[0].recipe, record.recipe)])
    if not same:
        return Agreement(new, "changed" if committed else "alone")
    key = next((key for key in HEADLINES if all(key in record.metrics for record in (*new, *same))), None)
    if key is None:
        return Agreement(new, "alone")
    values = [[record.metrics[key] for record in side] for side in (new, same)]
    here, there = (sum(side) / len(side) for side in values)
    allowed = margin(key, *values)
    status: Status = "agrees" if abs(here - there) <= allowed + 1e-9 else "differs"
    return Agreement(new, status, metric(key), here, there, allowed)


def _compared(agreement: Agreement) -> str:
    if agreement.metric is None:
        return "not compared with the committed records: the recipe has changed since"
    digits = agreement.metric.digits
    there = f"{agreement.metric.heading} {agreement.there:.{digits}f} ± {agreement.margin:.{digits}f}"
    if agreement.status == "agrees":
        return f"agrees with the committed records ({there}, here {agreement.here:.{digits}f})"
    numbers = seeds(sorted(record.seed for record in agreement.new))
    return f"differs from the committed records: {there} there, {agreement.here:.{digits}f} here ({numbers})"


def _name(agreement: Agreement, agreements: Sequence[Agreement]) -> str:
    """The preset, with those parts of the setting in which the lines differ."""
    words = [agreement.new[0].variant]
    for name in ("encoder", "protocol", "sees"):
        if len({getattr(other.new[0], name) for other in agreements if other.new[0].variant == words[0]}) > 1:
            words.append(getattr(agreement.new[0], name))
    return plain(", ".join(words))
