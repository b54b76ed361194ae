"""`capbench site`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from capbench.cli.options import CountOrNone
from capbench.cli.output import say

if TYPE_CHECKING:
    from capbench.site.gallery.finding import Gallery

PICTURES = 24  # of a gallery, besides its best and worst


def site(
    *,
    out: Path = Path("site"),
    check: bool = False,
    leaderboards: Path = Path("leaderboards"),
    runs: Path = Path("runs"),
    pictures: CountOrNone = PICTURES,
) -> None:
    """Build the leaderboards, every record, the library's pages and galleries as a folder of plain files.

    Open `index.html` in a browser; it needs no server and asks no other host for anything. Each finished run under RUNS
    has a gallery of test pictures; without a run there is none.

    Parameters
    ----------
    out
        The folder of the site. One that is there is replaced when the new one is whole.
    check
        Write nothing; exit with 1 and name each file of the site that does not match the records and the runs.
    leaderboards
        The folder of the records.
    runs
        The folder of all runs.
    pictures
        How many test pictures each gallery shows of those that all runs on the data share; 0 makes no gallery.
    """
    from capbench.site.build import build, stale

    has_galleries = pictures > 0 and any(runs.glob("*/*/run.json"))

    def galleries() -> list[Gallery]:
        if not has_galleries:
            return []
        from capbench.site.gallery.finding import galleries

        return galleries(runs, leaderboards / "results", pictures, lambda reason: say(f"no gallery: {reason}"))

    if not check:
        say(build(leaderboards, out, galleries))
    elif files := stale(leaderboards, out, galleries):
        for file in files:
            say(f"stale: {out / file}; run `capbench site --out {out}`")
        sys.exit(1)
    else:
        say(f"the site matches its records{' and runs' * has_galleries}")


def strip(out: Path, /, *, runs: Path = Path("runs"), leaderboards: Path = Path("leaderboards")) -> None:
    """Draw attention, search and alignment of your runs on scenes as one picture.

    It takes the best captioner with attention, the best joint embedding and the best alignment model.

    Parameters
    ----------
    out
        The picture (PNG, JPEG or WebP, by its name).
    runs
        The folder of all runs.
    leaderboards
        The folder of the records, where RUNS has none of a run.
    """
    from capbench.site.gallery.finding import galleries
    from capbench.site.gallery.strip import draw_strip
    from capbench.tools.drawing import check_drawable

    check_drawable(out)
    shown = galleries(runs, leaderboards / "results", PICTURES, lambda reason: say(f"left out: {reason}"), "scenes")
    draw_strip(shown, out)
    say(out)
