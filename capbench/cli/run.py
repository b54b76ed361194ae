"""`capbench run`."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from capbench.cli.options import Assignment, Count, Dataset, Encoder, OneOrMore, Seed, Tracker, recorded_name

if TYPE_CHECKING:
    from capbench.runs.job import Job
    from capbench.training.loop import TrainingState


def run(
    paper: str,
    /,
    *,
    dataset: Dataset = "scenes",
    preset: Annotated[list[str] | None, OneOrMore] = None,
    encoder: Annotated[list[Encoder] | None, OneOrMore] = None,
    seeds: Count = 3,
    seed: Seed | None = None,
    assignments: Annotated[list[Assignment] | None, OneOrMore, Parameter(name="--set")] = None,
    fresh: bool = False,
    tolerant: bool = False,
    track: Annotated[list[Tracker] | None, OneOrMore] = None,
    runs: Path = Path("runs"),
    leaderboards: Path = Path("leaderboards"),
) -> None:
    """Train a paper's presets, record the results and write the paper's page.

    The page shows them in rows marked `this machine`; `capbench leaderboard` restores the committed page. A line for
    each preset at the end says whether its mean agrees with the committed records of the same data,
    encoder, protocol and recipe. ± is how far the two may lie apart: half of the 95 % prediction interval over the
    committed seeds, and at least the tolerance of a verdict.

    Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 stop the run after the current step, which is saved. The same command
    resumes it.

    Parameters
    ----------
    paper
        The paper, for example vsepp.
    dataset
        The data set: scenes, flickr8k, flickr30k, coco, coco-norestval, one that `capbench datasets add` has
        registered, or the path of a folder. Scenes are drawn; the other known ones are read from CAPBENCH_DATA.
    preset
        One or several presets, or `all`; the paper's headline presets if not given.
    encoder
        One or several networks: torchvision's names, timm/<name>, or file/<name> for features that
        `capbench features --from` imported. If not given: timm/tf_efficientnet_lite2 for
        photographs, the scenes' own for scenes.
    seeds
        Run the seeds 0 to SEEDS - 1. An ensemble of n models runs once for every n seeds.
    seed
        Run this seed alone.
    assignments
        Set fields of the recipe: training.learning_rate=1e-3; `capbench show` lists them. The records are marked, have
        rows of their own, and are never pooled with the preset's nor judged as them. A preset that this one starts
        from keeps its own recipe.
    fresh
        Train from the beginning, even a run that has finished or can be resumed.
    tolerant
        Leave out the images that cannot be decoded, with their captions. The records list them, and their numbers are
        not compared with those of the whole data set.
    track
        Draw the curves of the runs with TensorBoard (in their folders), W&B or MLflow, too.
    runs
        The folder of checkpoints, trained models and, in its `records`, of what they scored.
    leaderboards
        The folder of the committed records and the pages.
    """
    from capbench.base.signals import stop_at_once
    from capbench.cli.reporting import Bars, conclude
    from capbench.runs.harness import Places
    from capbench.runs.harness import run as run_job
    from capbench.runs.materials import Materials
    from capbench.runs.paper import paper as find_paper
    from capbench.runs.plan import Session, plan
    from capbench.runs.tracking import Tracking
    from capbench.training import processes

    owner, places, materials = find_paper(paper), Places(runs), Materials(tolerant=tolerant)
    tracking = Tracking(track or (), places)
    jobs = plan(owner, recorded_name(dataset), preset, encoder, seeds, seed, assignments or ())
    materials.check(dataset, {job.encoder for job in jobs})  # refused before anything is written
    session = Session(places.runs / owner.name / "session.json", jobs, fresh)
    with processes.joined(), stop_at_once():
        with Bars(owner, len(jobs), shown=processes.main()) as bars, closing(tracking):

            def report(job: Job, state: TrainingState, batches: int) -> None:
                if processes.main():
                    bars.report(job, state, batches)
                    tracking.report(job, state, batches)

            for place in processes.once(lambda: [jobs.index(job) for job in session.remaining()]):
                job = jobs[place]
                bars.start(job)
                finished = run_job(job, places, materials, report, fresh=fresh)
                processes.once(partial(session.add, job, finished.records))
                tracking.done(job, finished)
                bars.done(finished)
        processes.once(session.clear)
        processes.once(lambda: conclude(owner, places, leaderboards, session.records))
