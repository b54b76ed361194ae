"""`capbench records`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from capbench.base.errors import CapbenchError, unknown
from capbench.cli.output import say


def add(
    names: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    /,
    *,
    runs: Path = Path("runs"),
    leaderboards: Path = Path("leaderboards"),
) -> None:
    """Copy records of your runs to the committed ones, so that the pages show them.

    Parameters
    ----------
    names
        The file names of records in RUNS/records, with or without .json; all of them if not given.
    runs
        The folder of your runs.
    leaderboards
        The folder of the committed records, which go into its `results`, and of the pages.
    """
    from capbench.evidence.records import add_records

    present = {path.stem: path for path in sorted((runs / "records").glob("*.json"))}
    if not present:
        raise CapbenchError(f"no record in {runs / 'records'}; name the folder of your runs with --runs")
    chosen = [name.removesuffix(".json") for name in names] or list(present)
    for name in chosen:
        if name not in present:
            raise unknown(f"record in {runs / 'records'}", name, present)
    for path in add_records([present[name] for name in chosen], leaderboards / "results"):
        say(path)
