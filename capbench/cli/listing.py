"""`capbench results`, `papers` and `show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from capbench.cli.options import Dataset, Format, OneOrMore, recorded_name
from capbench.cli.output import say

if TYPE_CHECKING:
    from capbench.cli.formats import Row


def results(
    *,
    paper: Annotated[list[str] | None, OneOrMore] = None,
    preset: Annotated[list[str] | None, OneOrMore] = None,
    dataset: Annotated[list[Dataset] | None, OneOrMore] = None,
    encoder: Annotated[list[str] | None, OneOrMore] = None,
    metric: Annotated[list[str] | None, OneOrMore] = None,
    format: Format = "table",
    leaderboards: Path = Path("leaderboards"),
    runs: Path = Path("runs"),
) -> None:
    """List results: the mean over seeds, its 95 % interval, and the verdict on the paper's own number.

    Committed records come first, then those of your own runs that are not among them; other systems come last. Every
    option narrows the list.

    Parameters
    ----------
    paper
        One or several papers, or `systems` for other systems, whose names are then the presets.
    preset
        One or several presets.
    dataset
        One or several data sets.
    encoder
        One or several encoders.
    metric
        One or several metrics by their keys, or `all`; those of the pages' first tables if not given.
    format
        A table to read, or csv, latex or json; csv and json have every digit and a few columns more.
    leaderboards
        The folder with the committed records, in its `results`.
    runs
        The folder with your own, in its `records`.
    """
    from capbench.base.errors import CapbenchError
    from capbench.cli.formats import written
    from capbench.evidence.records import SYSTEMS
    from capbench.evidence.results import Results
    from capbench.leaderboard import listing
    from capbench.runs.paper import paper as find_paper
    from capbench.runs.paper import papers as all_papers

    names = tuple(name if name == SYSTEMS else find_paper(name).name for name in paper or ())
    data = [recorded_name(name) for name in dataset or ()]
    wanted = listing.Wanted(names, *(tuple(each or ()) for each in (preset, data, encoder, metric)))
    committed, local = Results.load(leaderboards / "results"), Results.load(runs / "records")
    rows = listing.results(all_papers(), committed, local, wanted)
    if not rows:
        raise CapbenchError(f"no such record in {leaderboards / 'results'} or {runs / 'records'}")
    print(written(rows, format, _result, lifts=True))


def _result(row: Row) -> Row:
    from capbench.metrics.registry import metric

    digits = metric(row["metric"]).digits
    mean, low, high = (None if row[name] is None else f"{row[name]:.{digits}f}" for name in ("mean", "low", "high"))
    hidden = ("low", "high", "interval", "sees", "scoring", "system")
    shown = {name: value for name, value in row.items() if name not in hidden}
    return shown | {"mean": mean, "seeds": f"{row['seeds']}", "95 % interval": f"{low} to {high}" if low else None}


def papers(*, format: Format = "table", leaderboards: Path = Path("leaderboards")) -> None:
    """List the papers: their presets, the data sets they were run on, and how many of their numbers are matched.

    Parameters
    ----------
    format
        A table to read, or csv, latex or json; these three name every preset.
    leaderboards
        The folder with the committed records, in its `results`.
    """
    from capbench.cli.formats import written
    from capbench.evidence.results import Results
    from capbench.leaderboard.listing import listed_papers
    from capbench.runs.paper import papers as all_papers

    rows = listed_papers(all_papers().values(), Results.load(leaderboards / "results"))
    print(written(rows, format, _paper if format == "table" else dict))


def _paper(row: Row) -> Row:
    return {
        "paper": row["paper"],
        "title": row["title"],
        "presets": len(row["presets"]),
        "headline": row["headline"],
        "run on": row["datasets"],
        "numbers": row["reported"],
        "matched": row["matched"],
        "claims": row["claims"],
        "hold": row["claims_hold"],
    }


def show(preset: str, /, *, dataset: Dataset = "scenes", paper: str | None = None, format: Format = "table") -> None:
    """Show the whole recipe of a preset as it runs on a data set, and where it departs from the paper's own.

    Parameters
    ----------
    preset
        The preset, with its paper before a slash where several papers have one of that name (`vsepp/vsepp-ours`).
    dataset
        The data set; on scenes the presets are smaller.
    paper
        The paper, instead of the slash.
    format
        A table to read, or csv, latex or json.
    """
    from capbench.cli.formats import written
    from capbench.leaderboard import listing
    from capbench.leaderboard.commands import command
    from capbench.runs.paper import papers as all_papers

    owner, name = listing.of_preset(all_papers(), f"{paper}/{preset}" if paper else preset, dataset)
    own = listing.plain_preset(owner, name, dataset)
    rows = listing.recipe(owner, name, dataset)
    if format == "table":
        say(command(owner, [name], dataset))
        differing = sum(row["differs"] for row in rows)
        said = f"{own} is the paper's own; {differing} fields differ from it"
        say(said if own else "the paper has no plain preset for it" if name.endswith("-ours") else "the paper's own")
    print(written(rows, format, lambda row: _field(row, own)))


def _field(row: Row, own: str | None) -> Row:
    shown = {"field": row["field"], "value": _value(row["value"])}
    if own is not None:
        shown[own] = _value(row["paper"]) if row["differs"] else ""
    return {**shown, "meaning": row["meaning"]}


def _value(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
