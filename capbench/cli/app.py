"""The table of subcommands."""

from __future__ import annotations

from cyclopts import App, Group, Parameter

from capbench import __version__
from capbench.cli.compare import compare
from capbench.cli.data import add_dataset, check, datasets, export, features, fetch, import_hugging_face, remove
from capbench.cli.demo import demo
from capbench.cli.doctor import doctor
from capbench.cli.importing import import_released
from capbench.cli.leaderboard import leaderboard
from capbench.cli.listing import papers, results, show
from capbench.cli.output import console
from capbench.cli.records import add
from capbench.cli.run import run
from capbench.cli.score import rescore, score
from capbench.cli.site import site, strip
from capbench.cli.sweep import sweep
from capbench.cli.tools import align, caption, probe, search

EXIT_CODES = """Exit codes:

- 0: done
- 1: a check failed: stale pages, a metric that is worse (`--fail-if-worse`), a machine that lacks something, a data set
  with a fault
- 2: refused; one line names the fault
- 75: stopped by a signal and saved; the same command resumes
- 130: interrupted, nothing to save
- 141: nobody reads what it prints any more, as behind `| head`
"""

app = App(
    name="capbench",
    version=__version__,
    help="Reproductions of the classic image-caption papers, measured under one protocol.",
    help_epilogue=EXIT_CODES,
    console=console,
    default_parameter=Parameter(negative=()),  # no --no-check, no --empty-preset
)
REPRODUCE, OWN, MODEL, INSIDE = (
    Group(words, sort_key=place)
    for place, words in enumerate(("Reproduce", "Bring your own", "Use a model", "Look into"))
)
for group, commands in (
    (REPRODUCE, (run, sweep, leaderboard, site, results, papers, show)),
    (OWN, (compare, rescore, features)),
    (MODEL, (search, caption, align, demo, strip)),
    (INSIDE, (doctor, probe)),
):
    for command in commands:
        app.command(command, group=group)
score.group = (OWN,)
app.command(score)
app.command(import_released, name="import", group=OWN)

data = App(name="datasets", default_command=datasets, group=OWN)
data.command(fetch)
data.command(check)
data.command(add_dataset, name="add")
data.command(remove)
data.command(export)
importing = App(name="import", help="Write a data set of another library as a folder of your own.")
importing.command(import_hugging_face, name="hf")
data.command(importing)
app.command(data)

records = App(name="records", help="Records of your runs.", group=INSIDE)
records.command(add)
app.command(records)
