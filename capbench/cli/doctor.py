"""`capbench doctor`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from capbench.cli.options import Json


def doctor(*, as_json: Json = False) -> None:
    """Check this machine: what capbench needs, what it can use, and what to do for what is missing.

    Exits with 1 where something is missing that is needed, or wrong that you have set up. What is optional, such as a
    GPU, Java or a data set, never fails.

    Parameters
    ----------
    as_json
        Print the checks as JSON.
    """
    from rich.table import Table
    from rich.text import Text

    from capbench.cli.output import console, say
    from capbench.tools.doctor import examine

    checks = list(examine())
    failed = [check.name for check in checks if check.fails]
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        colours = {"ok": "green", "missing": "yellow", "wrong": "red"}
        table = Table("check", "", "found, and what to do", box=None, header_style="", pad_edge=False)
        for check in checks:
            colour = colours["missing"] if check.state == "wrong" and not check.fails else colours[check.state]
            lines = "\n".join(filter(None, (check.found, check.mend)))
            table.add_row(Text(check.name), Text(check.state, colour), Text(lines, overflow="fold"))
        console.print(table)
        say(f"to mend: {', '.join(failed)}" if failed else "everything needed is there")
    if failed:
        sys.exit(1)
