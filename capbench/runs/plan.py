"""The jobs of one `capbench run`, and which of them are done."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import JsonValue

from capbench.base.errors import CapbenchError
from capbench.base.files import atomic_write
from capbench.data.checked_json import Checked, read_json
from capbench.data.datasets import default_encoder
from capbench.runs.job import Job
from capbench.runs.paper import Paper
from capbench.runs.recipes import parsed
from capbench.vision.networks import check_name


def plan(
    paper: Paper,
    dataset: str,
    presets: Sequence[str] | None = None,
    encoders: Sequence[str] | None = None,
    seeds: int = 3,
    seed: int | None = None,
    assignments: Sequence[str] = (),
) -> list[Job]:
    """The jobs in the order in which they run: by encoder, seed and preset, and ensembles after all single models.

    `presets` are the paper's headline presets if not given, and all of them if "all" is among them. `seeds` counts
    from 0, and an ensemble of n models takes n of them; `seed` names one instead. What is named twice runs once.
    `assignments` set fields of every preset's recipe ("training.learning_rate=1e-3").
    Raises CapbenchError naming an unknown preset or encoder, a field or value that cannot be set, or two jobs that
    would be kept in one folder.

    >>> from capbench.runs.paper import paper
    >>> print(*plan(paper("vsepp"), "scenes", ["vse0"], seeds=2), sep="\\n")
    vsepp vse0 on scenes, scenes, seed 0
    vsepp vse0 on scenes, scenes, seed 1
    """
    names = list(dict.fromkeys(presets or paper.headline))
    if "all" in names:
        names = list(paper.presets(dataset))
    networks = list(dict.fromkeys(encoders or [default_encoder(dataset)]))
    for encoder in networks:
        check_name(encoder)
    overrides = {name: _overrides(paper, name, dataset, assignments) for name in names}
    size = {name: paper.recipe(name, dataset, overrides[name]).ensemble_size for name in names}
    jobs = [
        Job(paper.name, name, dataset, encoder, number, overrides[name])
        for encoder in networks
        for number in (range(seeds) if seed is None else [seed])
        for name in names
        if seed is not None or number < max(1, seeds // size[name])
    ]
    check_folders(jobs)
    return sorted(jobs, key=lambda job: size[job.preset] > 1)


def check_folders(jobs: Iterable[Job]) -> None:
    """Raises CapbenchError where two different jobs would be kept in one folder."""
    known: dict[tuple[str, str], Job] = {}
    for job in jobs:
        other = known.setdefault((job.paper, job.name), job)
        if other != job:
            place = f"{job.paper}/{job.name}"
            raise CapbenchError(
                f"{other} and {job} would both be kept in {place}; give each a --runs folder of its own"
            )


def _overrides(paper: Paper, preset: str, dataset: str, assignments: Sequence[str]) -> dict[str, JsonValue]:
    recipe = paper.recipe(preset, dataset)
    try:
        return parsed(recipe, assignments)
    except CapbenchError as error:
        raise CapbenchError(f"{preset}: {error}") from error


class Session:
    """Which jobs a command with --fresh has made anew, kept in a file so that the command resumes after a stop.

    Without --fresh nothing is skipped by it: whether a job is done shows in its folder and its records.
    `records` are the names of the files that the finished jobs recorded, before the stop and after it.
    A file of another command is replaced; an unreadable one too, with a warning.
    """

    def __init__(self, path: Path, jobs: Sequence[Job], fresh: bool) -> None:
        self.path, self.jobs, self.fresh = path, list(jobs), fresh
        self._names = [job.name for job in jobs]
        saved = _read(path) if fresh else None
        resumed = saved is not None and saved.jobs == self._names
        self._done: list[str] = list(saved.done) if saved and resumed else []
        self.records: list[str] = list(saved.records) if saved and resumed else []

    def remaining(self) -> list[Job]:
        """The jobs that are not done, in order."""
        return [job for job in self.jobs if job.name not in self._done]

    def add(self, job: Job, records: Sequence[Path]) -> None:
        """Note that a job is done and what it recorded."""
        self._done.append(job.name)
        self.records += [record.name for record in records]
        if self.fresh:
            state = {"jobs": self._names, "done": self._done, "records": self.records}
            atomic_write(self.path, json.dumps(state).encode())

    def clear(self) -> None:
        """Forget the session: all is done."""
        self.path.unlink(missing_ok=True)


class _Saved(Checked):
    jobs: list[str]
    done: list[str]
    records: list[str]


def _read(path: Path) -> _Saved | None:
    if not path.exists():
        return None
    try:
        return read_json(path, _Saved)
    except CapbenchError as error:
        warnings.warn(f"{error}; the command starts with its first job", stacklevel=3)
        return None
