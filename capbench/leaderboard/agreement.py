"""Whether what a command has just made agrees with the records that were there before."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from capbench.base.provenance import tracked
from capbench.evidence.records import Result
from capbench.evidence.results import Results
from capbench.evidence.verdicts import tolerance
from capbench.leaderboard.cells import seeds
from capbench.leaderboard.columns import Metric, metric
from capbench.leaderboard.comparison import SETTING, changes
from capbench.leaderboard.markdown import plain
from capbench.metrics.significance import seed_interval

HEADLINES = ("bleu4", "rsum", "perplexity", "pointing")  # compared is the first that all records have
Status = Literal["agrees", "differs", "changed", "alone"]


@dataclass(frozen=True)
class Earlier:
    """The names of the records that a command finds, and what they are called: "committed", or only "earlier"."""

    names: frozenset[str]
    word: str

    @classmethod
    def of(cls, folder: Path) -> Earlier:
        """Those of a folder that git tracks; all of them where there is no git, or no checkout."""
        committed = tracked(folder)
        if committed is not None:
            return cls(committed, "committed")
        return cls(frozenset(path.name for path in folder.glob("*.json")), "earlier")


@dataclass(frozen=True)
class Agreement:
    """The new records of a setting beside the earlier ones, in one metric.

    "changed": the earlier ones are of another recipe; "alone": there is none to compare with. `here` and `there` are
    means, and `margin` is how far they may lie apart.
    """

    new: tuple[Result, ...]
    status: Status
    metric: Metric | None = None
    here: float = math.nan
    there: float = math.nan
    margin: float = math.nan

    @property
    def setting(self) -> tuple[str, ...]:
        return setting(self.new[0])


def setting(record: Result) -> tuple[str, ...]:
    """What records share that are compared."""
    return tuple(str(getattr(record, name)) for name in SETTING)


def compare(new: Iterable[Result], earlier: Iterable[Result]) -> list[Agreement]:
    """One agreement for each setting of the new records, in their order; all are of one paper.

    Of the earlier records those of the same setting and recipe count, the latest of each seed.
    """
    made: dict[tuple[str, ...], list[Result]] = {}
    for record in new:
        made.setdefault(setting(record), []).append(record)
    there: dict[tuple[str, ...], list[Result]] = {}
    for record in earlier:
        there.setdefault(setting(record), []).append(record)
    return [_agreement(_latest(records), there.get(key, [])) for key, records in made.items()]


def margin(key: str, here: Sequence[float], there: Sequence[float]) -> float:
    """How far the mean of new seeds may lie from that of earlier ones.

    Half of the 95 % prediction interval, t(n - 1) s √(1/m + 1/n) for m new seeds and n earlier ones, whose standard
    deviation is s. Never less than the tolerance of a verdict, which is all that one earlier seed gives.
    """
    least = tolerance(key)
    if len(there) < 2:
        return least
    of_mean = seed_interval(there)  # ± t(n - 1) s / √n
    return max(least, (of_mean.high - of_mean.low) / 2 * math.sqrt(1 + len(there) / len(here)))


def sentences(found: Sequence[Agreement], word: str = "committed") -> Iterator[str]:
    """A line for each setting that could be compared, and one for all that have nothing to compare with."""
    alone = []
    for one in found:
        name = _name(one, found)
        if one.status == "alone":
            alone.append(name)
        elif one.status == "changed":
            yield f"{name}: not compared with the {word} records: the recipe has changed since"
        else:
            yield f"{name}: {_compared(one, word)}"
    if alone:
        which = f": {'; '.join(alone)}" if len(alone) < len(found) else ""
        yield f"no {word} record to compare with{which}"


def _latest(records: Sequence[Result]) -> tuple[Result, ...]:
    return Results(Path(), tuple(records)).latest.records


def _agreement(new: tuple[Result, ...], earlier: Sequence[Result]) -> Agreement:
    same = _latest([record for record in earlier if record.recipe and not changes(new[0].recipe, record.recipe)])
    if not same:
        return Agreement(new, "changed" if earlier else "alone")
    key = next((key for key in HEADLINES if all(key in record.metrics for record in (*new, *same))), None)
    if key is None:
        return Agreement(new, "alone")
    values = [[record.metrics[key] for record in side] for side in (new, same)]
    here, there = (sum(side) / len(side) for side in values)
    allowed = margin(key, *values)
    status: Status = "agrees" if abs(here - there) <= allowed + 1e-9 else "differs"
    return Agreement(new, status, metric(key), here, there, allowed)


def _compared(one: Agreement, word: str) -> str:
    assert one.metric is not None
    digits = one.metric.digits
    there = f"{one.metric.head} {one.there:.{digits}f} ± {one.margin:.{digits}f}"
    if one.status == "agrees":
        return f"agrees with the {word} records ({there}, here {one.here:.{digits}f})"
    numbers = seeds(sorted(record.seed for record in one.new))
    return f"differs from the {word} records: {there} there, {one.here:.{digits}f} here ({numbers})"


def _name(one: Agreement, found: Sequence[Agreement]) -> str:
    """The preset, with those parts of the setting in which the lines differ."""
    words = [one.new[0].preset]
    for name in ("encoder", "protocol", "sees"):
        if len({getattr(other.new[0], name) for other in found if other.new[0].preset == words[0]}) > 1:
            words.append(getattr(one.new[0], name))
    return plain(", ".join(words))
