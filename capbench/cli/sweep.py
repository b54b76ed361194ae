"""`capbench sweep`."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from capbench.base.errors import CapbenchError, listed
from capbench.cli.options import Assignment, Count, Dataset, Encoder, OneOrMore, recorded_name
from capbench.cli.output import console, say

if TYPE_CHECKING:
    from rich.table import Table

    from capbench.runs.harness import Places
    from capbench.runs.job import Job
    from capbench.runs.materials import Materials

# Spelled out here because the module that defines it imports torch; a test compares the two.
Engine = Literal["local", "slurm", "ray"]
WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "CONFIGURING", "SUSPENDED", "COMPLETING", "RESIZING",
           "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT", "STOPPED")  # fmt: skip
PATIENCE = 600.0  # seconds after its submission in which Slurm may not know a job yet


def sweep(
    papers: Annotated[list[str], OneOrMore],
    /,
    *,
    dataset: Annotated[list[Dataset] | None, OneOrMore] = None,
    preset: Annotated[list[str] | None, OneOrMore] = None,
    encoder: Annotated[list[Encoder] | None, OneOrMore] = None,
    seeds: Count = 3,
    assignments: Annotated[list[Assignment] | None, OneOrMore, Parameter(name="--set")] = None,
    cluster: Engine = "local",
    parallel: Count | None = None,
    minutes: Count = 24 * 60,
    cpus: Count = 4,
    gpus: int = 0,
    slurm: Annotated[list[str] | None, OneOrMore] = None,
    tolerant: bool = False,
    status: bool = False,
    runs: Path = Path("runs"),
    leaderboards: Path = Path("leaderboards"),
) -> None:
    """Run papers x presets x data sets x encoders x seeds, each run in a job of its own; only those that are missing.

    On Slurm the jobs are an array, and the command returns when it is submitted. A job that is preempted or over time
    saves, is queued again and continues. Elsewhere the command stays, with a table of what each run is at; Ctrl-C and
    the other signals of `capbench run` stop and save all of them, and the same command continues. A run that starts
    from another one shares its job.

    Parameters
    ----------
    papers
        One or several papers, for example vsepp show-attend-tell.
    dataset
        One or several data sets, as of `capbench run`; scenes if not given.
    preset
        One or several presets, or `all`; each of the papers runs those that it has. If not given: its headline presets.
    encoder
        One or several networks, as of `capbench run`.
    seeds
        Run the seeds 0 to SEEDS - 1.
    assignments
        Set fields of every recipe: training.learning_rate=1e-3.
    cluster
        Processes on this machine, Slurm, or Ray (the cluster of RAY_ADDRESS, or this machine).
    parallel
        How many jobs run at once; 1 on this machine and 32 elsewhere if not given.
    minutes
        The time limit of a Slurm job.
    cpus
        The cores of a job on Slurm or Ray.
    gpus
        The GPUs of a job on Slurm or Ray.
    slurm
        More of Slurm's parameters, by submitit's names: partition=gpu account=vision.
    tolerant
        Leave out images that cannot be decoded, as of `capbench run`.
    status
        Print what each run is at, and start nothing. Exits with 1 unless all are done.
    runs
        The folder of the runs; what is submitted, and the jobs' output, goes into its `sweep`.
    leaderboards
        The folder of the committed records and the pages.
    """
    from rich.live import Live

    from capbench.runs import sweep as sweeping
    from capbench.runs.engines import Resources, submit, work
    from capbench.runs.harness import Places
    from capbench.runs.materials import Materials

    materials = Materials()
    places, folder = Places(runs), runs.resolve() / "sweep"
    jobs = _jobs(papers, dataset or ["scenes"], preset, encoder, seeds, assignments or (), materials)
    submitted = _Submitted(folder)
    if status:
        console.print(_table(jobs, places, submitted, materials))
        if any(sweeping.state(job, places, materials) != "done" for job in jobs):
            raise SystemExit(1)
        return
    missing, held = _missing(jobs, places, submitted, materials)
    if held:
        say(f"{len(held)} runs wait for others, which are under way: {listed(held)}; give the command again then")
    tasks, pages = sweeping.tasks(missing), leaderboards
    if cluster == "ray":  # whose processes have folders of their own
        places, pages = Places(runs.resolve()), leaderboards.resolve()
        jobs = {job: str(Path(name).resolve()) if Path(name).is_dir() else name for job, name in jobs.items()}
    words = [sweeping.command(task, jobs[task.jobs[0]], places, pages, tolerant) for task in tasks]
    resources = Resources(minutes, cpus, gpus, tuple(slurm or ()))
    if cluster == "slurm":
        ids = submit(words, folder, resources, parallel or 32) if tasks else []
        submitted.add({job: number for task, number in zip(tasks, ids, strict=True) for job in task.jobs})
        console.print(_table(jobs, places, submitted, materials))
        say(f"{len(ids)} jobs submitted; the same command with --status says what they are at")
        return
    with Live(console=console, refresh_per_second=2) as live:

        def look() -> None:
            live.update(_table(jobs, places, submitted, materials))

        try:
            work(words, folder, cluster, resources, parallel or (1 if cluster == "local" else 32), look)
        finally:
            look()
    left = [job for job in missing if sweeping.state(job, places, materials) != "done"]
    if left:
        named = listed(left)
        raise CapbenchError(f"{len(left)} of {len(missing)} runs failed: {named}; their output is under {folder}")


def _jobs(
    papers: Sequence[str], datasets: Sequence[str], presets: Sequence[str] | None, encoders: Sequence[str] | None,
    seeds: int, assignments: Sequence[str], materials: Materials,
) -> dict[Job, str]:  # fmt: skip
    """The jobs, each with its data set as it was given: by name, or by folder."""
    from capbench.base.errors import unknown
    from capbench.runs.paper import paper
    from capbench.runs.plan import check_folders, plan

    found: dict[Job, str] = {}
    given: dict[str, str] = {}
    owners = [paper(name) for name in dict.fromkeys(papers)]
    for dataset in dict.fromkeys(datasets):
        name = recorded_name(dataset)
        if (other := given.setdefault(name, dataset)) != dataset:
            raise CapbenchError(
                f"the data sets {other} and {dataset} are both kept as {name}; give each a sweep and --runs of its own"
            )
        known = {owner.name: [*owner.presets(name), "all"] for owner in owners}
        for wanted in presets or ():
            if not any(wanted in names for names in known.values()):
                raise unknown("preset", wanted, [each for names in known.values() for each in names])
        for owner in owners:
            own = [each for each in presets or () if each in known[owner.name]]
            if own or not presets:
                planned = plan(owner, name, own or None, encoders, seeds, None, assignments)
                found |= dict.fromkeys(planned, dataset)
        materials.check(dataset, {job.encoder for job in found if found[job] == dataset})
    check_folders(found)
    return found


class _Submitted:
    """The Slurm jobs of runs, kept in a file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "submitted.json"
        self.jobs = self._read()

    def _read(self) -> dict[str, tuple[str, float]]:
        """The id and the time of submission, in seconds, of each run's job."""
        try:
            return {name: (str(number), float(at)) for name, (number, at) in json.loads(self.path.read_text()).items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def add(self, ids: dict[Job, str]) -> None:
        from capbench.base.files import atomic_write, locked

        new = {f"{job.paper}/{job.name}": (number, time.time()) for job, number in ids.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_suffix(".lock"), 60.0):
            self.jobs = self._read() | new  # another sweep may have submitted meanwhile
            atomic_write(self.path, json.dumps(self.jobs, indent=1).encode())

    def state(self, job: Job) -> str:
        """Slurm's word for the job of a run; empty where there is none, or one that Slurm has forgotten."""
        from capbench.runs.engines import slurm_state

        number, at = self.jobs.get(f"{job.paper}/{job.name}", ("", 0.0))
        word = slurm_state(self.folder, number) if number else ""
        return word if word != "UNKNOWN" else "PENDING" if time.time() - at < PATIENCE else ""


def _state(job: Job, places: Places, submitted: _Submitted, materials: Materials) -> str:
    """What a run is at, by its folder and by Slurm."""
    from capbench.runs.sweep import state

    found = state(job, places, materials)
    if found in ("done", "running") or not (word := submitted.state(job)):
        return found
    if word.startswith(WAITING):
        return "queued"
    return "running" if word.startswith("RUNNING") else f"{found} ({word.split()[0].lower()})"


def _missing(
    jobs: dict[Job, str], places: Places, submitted: _Submitted, materials: Materials
) -> tuple[list[Job], list[Job]]:
    """The jobs to begin now, and those that wait for others, from which they start and which are under way."""
    from capbench.runs.sweep import involved

    busy = ("running", "queued")
    missing = [job for job in jobs if _state(job, places, submitted, materials) not in ("done", *busy)]
    held = [job for job in missing if any(_state(each, places, submitted, materials) in busy for each in involved(job))]
    return [job for job in missing if job not in held], held


def _table(jobs: dict[Job, str], places: Places, submitted: _Submitted, materials: Materials) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    states = {job: _state(job, places, submitted, materials) for job in jobs}
    counted = Counter(states.values())
    title = ", ".join(f"{count} {state}" for state, count in counted.items())
    table = Table("paper", "preset", "data set", "encoder", "seed", "state", box=SIMPLE_HEAD, title=title, padding=0)
    for job, found in states.items():
        cells = (job.paper, job.variant, job.dataset, job.encoder, str(job.seed), found)
        table.add_row(*map(escape, cells))
    return table
