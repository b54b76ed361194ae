"""Many runs shared out: what each is at, which belong together, and which are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from capbench.base.errors import CapbenchError
from capbench.base.json_records import read_record
from capbench.evidence.records import Result
from capbench.runs.harness import LEFT_OUT, LOCK, Places, sources
from capbench.runs.job import Job, description
from capbench.runs.materials import Materials
from capbench.runs.paper import paper
from capbench.training import checkpoint
from capbench.vision.features import pictures_of

State = Literal["done", "running", "stopped", "missing"]


@dataclass(frozen=True)
class Task:
    """Runs that one process makes in turn: one, or several of which some start from others."""

    jobs: tuple[Job, ...]

    def __str__(self) -> str:
        first, others = self.jobs[0], len(self.jobs) - 1
        return f"{first}{f' and {others} more' if others else ''}"


def state(job: Job, places: Places, materials: Materials) -> State:
    """What a run is at, by its folder: finished with today's recipe on today's data, held by a process, left with a
    checkpoint, or not begun. Weights and boxes are not looked at: `capbench run` does.
    """
    folder = places.folder(job)
    if _done(job, places, materials):
        return "done"
    if _held(folder / LOCK):
        return "running"
    return "stopped" if checkpoint.kept(folder) else "missing"


def tasks(jobs: Sequence[Job]) -> list[Task]:
    """The jobs in their order, those together that share a run to start from: two processes cannot both train it."""
    groups: list[set[Job]] = []
    for job in jobs:
        group = involved(job)
        for other in [other for other in groups if other & group]:
            group |= other
            groups.remove(other)
        groups.append(group)
    together = [Task(tuple(job for job in jobs if job in group)) for group in groups]
    return sorted(together, key=lambda task: jobs.index(task.jobs[0]))


def command(task: Task, dataset: str, places: Places, leaderboards: Path, tolerant: bool) -> list[list[str]]:
    """The words of `capbench run` for each job of a task, on a data set by its name or its folder."""
    more = ["--runs", str(places.runs), "--leaderboards", str(leaderboards), *(["--tolerant"] if tolerant else [])]
    return [[*replace(job, dataset=dataset).words, *more] for job in task.jobs]


def involved(job: Job) -> set[Job]:
    """A job, what it starts from, and so on."""
    recipe = paper(job.paper).recipe(job.preset, job.dataset, job.overrides)
    return {job}.union(*map(involved, sources(job, recipe)))


def _done(job: Job, places: Places, materials: Materials) -> bool:
    try:
        described = description(places.folder(job))
    except CapbenchError:
        return False
    if described.job != job:
        return False
    recipe = paper(job.paper).recipe_of(job.preset, job.dataset, described.identity["recipe"], job.overrides)
    there = bool(described.records) and all((places.records / name).exists() for name in described.records)
    if not there or checkpoint.differences(asdict(recipe), described.identity["recipe"]):
        return False
    dataset = materials.without(job, _left_out(places.records / described.records[0]))
    if described.identity.get("dataset") != dataset.fingerprint:
        return False
    pictures = pictures_of(described.identity["features"], materials.store)
    return pictures is None or pictures == dataset.images.fingerprint


def _left_out(record: Path) -> tuple[str, ...]:
    """The images that a run went without; none where its record is damaged."""
    try:
        notes = read_record(Result, record).notes
    except CapbenchError:
        return ()
    return tuple(note.removeprefix(LEFT_OUT) for note in notes if note.startswith(LEFT_OUT))


def _held(path: Path) -> bool:
    """Whether a process holds a lock."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    lock.release()
    return False
