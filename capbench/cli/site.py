"""`capbench site`."""

from __future__ import annotations

import sys
from pathlib import Path

from capbench.cli.output import say


def site(*, out: Path = Path("site"), check: bool = False, leaderboards: Path = Path("leaderboards")) -> None:
    """Build the leaderboards, every record and the library's pages as a folder of plain files.

    Open `index.html` in a browser; it needs no server and asks no other host for anything.

    Parameters
    ----------
    out
        The folder of the site. One that is there is replaced when the new one is whole.
    check
        Write nothing; exit with 1 and name each file of the site that does not match the records.
    leaderboards
        The folder of the records.
    """
    from capbench.site.build import build, stale

    if not check:
        say(build(leaderboards, out))
    elif files := stale(leaderboards, out):
        for file in files:
            say(f"stale: {out / file}; run `capbench site --out {out}`")
        sys.exit(1)
    else:
        say("the site matches its records")
