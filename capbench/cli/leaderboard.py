"""`capbench leaderboard`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from capbench.cli.options import Json
from capbench.cli.output import say


def leaderboard(
    *,
    check: bool = False,
    as_json: Json = False,
    leaderboards: Path = Path("leaderboards"),
) -> None:
    """Rewrite the pages from the committed records. Without a record it says so and writes nothing.

    Parameters
    ----------
    check
        Write nothing; exit with 1 and name each page that does not match its records.
    as_json
        Print every row as JSON and write no page.
    leaderboards
        The folder of the records and pages.
    """
    from capbench import leaderboard as board
    from capbench.base.errors import CapbenchError
    from capbench.runs.paper import papers

    if leaderboards == board.FOLDER and (reason := board.absent(leaderboards)):
        if check:
            raise CapbenchError(reason)
        print("[]" if as_json else reason)
    elif as_json:
        print(json.dumps(board.rows_as_json(papers(), leaderboards), indent=1))
    elif check:
        stale = board.check(papers(), leaderboards)
        for path in stale:
            say(f"stale: {path}; run `capbench leaderboard`")
        if stale:
            sys.exit(1)
        say("every page matches its records")
    else:
        for path in board.write(papers(), leaderboards):
            say(path)
