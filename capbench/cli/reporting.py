"""What `capbench run` prints: progress while it trains, and tables at the end."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from capbench import leaderboard
from capbench.base.console import Terminal
from capbench.cli.output import console, say
from capbench.evidence.results import Results
from capbench.runs.harness import FinishedRun, Places
from capbench.runs.job import Job
from capbench.runs.paper import Paper, metric_of
from capbench.training.loop import TrainingState


class Bars:
    """A bar over the steps of the current job, and above it a line for each epoch and each finished job."""

    def __init__(self, paper: Paper, jobs: int, *, shown: bool = True) -> None:
        self.paper, self.jobs, self.started = paper, jobs, 0
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        screen = console if shown else Terminal(quiet=True)
        self.progress = Progress(TextColumn("{task.description}", markup=False), *columns, console=screen)
        self.task: TaskID | None = None

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def start(self, job: Job) -> None:
        self.started += 1
        self._say(f"[{self.started}/{self.jobs}] {job}")
        self.task = self.progress.add_task(f"{job.variant}, seed {job.seed}", total=None)

    def report(self, job: Job, state: TrainingState, batches: int) -> None:
        """Called after each step with the batches of an epoch, and after each validation with 0."""
        if self.task is None:
            return
        recipe = self.paper.recipe(job.preset, job.dataset, job.overrides)
        if batches:
            steps = state.epoch * batches + state.step
            self.progress.update(self.task, completed=steps, total=recipe.training.epochs * batches)
            return
        epoch, metric = state.curve[-1], metric_of(self.paper, asdict(recipe))
        loss = "" if epoch["loss"] is None else f"  loss {epoch['loss']:9.3f}"
        score = f"{metric} {epoch['validation'][metric]:7.2f}"
        self._say(f"  epoch {epoch['epoch'] + 1:3d}{loss}  {score}  {epoch['seconds']:6.1f} s")

    def done(self, finished: FinishedRun) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
        if not finished.trained:
            self._say(f"  done already, on {finished.date}; --fresh trains it again")
        for record in finished.records:
            self._say(f"  {record}")

    def _say(self, line: str) -> None:
        self.progress.console.print(line, markup=False, highlight=False)


def conclude(paper: Paper, places: Places, leaderboards: Path, made: Collection[str]) -> None:
    """Write the paper's page and print its path, after tables of the command's runs and how they agree with others.

    `made` are the file names of the records that the command made, in `places.records`.
    """
    local = Results.load(places.records, paper.name)
    page = leaderboard.write_page(paper, leaderboards, local)  # first: a fault of the terminal costs no page
    committed = Results.load(leaderboards / "results", paper.name)
    for item in leaderboard.closing(paper, committed, local, made):
        if isinstance(item, str):
            say(item)
        else:
            console.print(item)
    if reason := leaderboard.absent(leaderboards):
        say(reason)
    say(page)
