"""The `capbench` command."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from capbench import __version__, leaderboard
from capbench.base.errors import CapbenchError
from capbench.evidence.records import load_results
from capbench.runs.harness import DEFAULT_ENCODER, ENCODERS, Materials, Places, run
from capbench.runs.job import Job
from capbench.runs.paper import Paper, joined, metric_of, paper, papers
from capbench.training.loop import State, StoppedError
from capbench.vision.features import Crop

BAD_INPUT, STOPPED = 2, 75

app = App(
    name="capbench",
    version=__version__,
    help="Reproductions of the classic image-caption papers, measured under one protocol.",
)
console = Console()


@app.command
def datasets() -> None:
    """List the data sets: what is here, and where to put what is not."""
    from capbench.data.datasets import describe

    table = Table("data set", "images", "captions", "splits", "where")
    for row in describe():
        table.add_row(*(str(value) for value in row))
    console.print(table)


@app.command
def features(dataset: str, *, encoder: str = DEFAULT_ENCODER, crop: Crop = "1C", tolerant: bool = False) -> None:
    """Compute the features of a data set, or find them in the store.

    Parameters
    ----------
    dataset: scenes, flickr8k, flickr30k or coco.
    encoder: the network, as in torchvision; its weights come from CAPBENCH_WEIGHTS or from torchvision.
    crop: 1C, the centre, or 10C, the mean of ten crops; multiscale or another source of boxes gives 20 regions.
    tolerant: leave out images that cannot be decoded, and list them, instead of stopping at the first.
    """
    from capbench.data.datasets import load_dataset
    from capbench.vision.encoders import Encoder
    from capbench.vision.features import features as extract
    from capbench.vision.regions import PROVIDERS

    network = Encoder(ENCODERS.get(dataset, encoder), "regions" if crop in PROVIDERS else "vector")
    found = extract(load_dataset(dataset), network, crop, tolerant=tolerant)
    console.print(f"{found.array.shape} {found.array.dtype} in {found.path}")
    for name in found.skipped:
        console.print(f"left out: {name}", markup=False)


@app.command(name="run")
def run_(
    paper_name: Annotated[str, Parameter(name="paper")],
    /,
    *,
    dataset: str = "scenes",
    preset: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    encoder: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    seeds: int = 3,
    seed: int | None = None,
    fresh: bool = False,
    runs: Path = Path("runs"),
    leaderboards: Path = Path("leaderboards"),
) -> None:
    """Train a paper's presets, record the results and rewrite the paper's leaderboard.

    At the end a line for each preset says whether its mean agrees with that of the committed records of the same data,
    encoder, protocol and recipe. ± is how far the two may lie apart: half of the 95 % prediction interval over the
    committed seeds, at least the tolerance of a verdict.

    Stop it with Ctrl-C, SIGTERM or SIGUSR1: the step is finished and saved, the exit code is 75, and the same command
    goes on from there.

    Parameters
    ----------
    paper_name: the paper, for example vsepp.
    dataset: scenes (drawn on the spot), flickr8k, flickr30k or coco.
    preset: which presets; the paper's headline ones if not given, `all` for every one.
    encoder: the networks that see the images, one or several; mobilenet_v2 for photographs if not given.
    seeds: how many seeds, from 0; a preset that joins n trained models runs once for every n of them.
    seed: one seed alone, in place of `seeds`.
    fresh: throw the checkpoints of an unfinished run away and start it anew.
    runs: where checkpoints and trained snapshots are kept.
    leaderboards: where records and pages are written.
    """
    owner, places, materials = paper(paper_name), Places(runs, leaderboards), Materials()
    chosen = list(owner.presets(dataset)) if preset == ["all"] else preset or list(owner.headline)
    networks = encoder or [ENCODERS.get(dataset, DEFAULT_ENCODER)]
    if seed is None and seeds < 1:
        raise CapbenchError(f"--seeds is {seeds}; give at least 1")
    members = {name: joined(owner.recipe(name, dataset)) for name in chosen}  # an unknown preset stops here
    jobs = [
        Job(owner.name, name, dataset, network, number)
        for network in networks
        for number in (range(seeds) if seed is None else [seed])
        for name in chosen
        if seed is not None or number < max(1, seeds // members[name])
    ]
    jobs.sort(key=lambda job: members[job.preset] > 1)  # after those that they join
    earlier = leaderboard.Earlier.of(places.results)
    finished = _Session(places.runs / owner.name / "session.json", jobs)
    with _Bars(owner, len(jobs)) as bars:
        for job in finished.remaining():
            bars.start(job)
            records = run(job, places, materials, bars.report, fresh=fresh)
            finished.add(job, records)
            bars.done(records)
    finished.clear()
    _conclude(owner, places, finished.records, earlier)


@app.command(name="leaderboard")
def leaderboard_(
    *,
    check: bool = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    leaderboards: Path = Path("leaderboards"),
) -> None:
    """Rewrite the pages from the records.

    Parameters
    ----------
    check: write nothing; exit with 1 and name the stale files where a page does not match its records.
    as_json: print every row as JSON and write nothing.
    leaderboards: where records and pages are.
    """
    if as_json:
        print(json.dumps(leaderboard.rows_as_json(papers(), leaderboards), indent=1))
    elif check:
        stale = leaderboard.check(papers(), leaderboards)
        for path in stale:
            console.print(f"stale: {path}; run `capbench leaderboard`", markup=False)
        if stale:
            sys.exit(1)
        console.print("every page matches its records")
    else:
        for path in leaderboard.write(papers(), leaderboards):
            console.print(str(path), markup=False)


@app.command
def search(
    query: str | None = None,
    *,
    images: Path | None = None,
    image: Path | None = None,
    captions: Path | None = None,
    top: int = 5,
    run: Path | None = None,
    runs: Path = Path("runs"),
    sheet: Path | None = None,
) -> None:
    """Find the images of a folder that a sentence describes, or the captions of a file that describe an image.

    Parameters
    ----------
    query: the sentence; needs --images.
    images: a folder of images to search.
    image: the photograph; needs --captions.
    captions: a text file, one caption a line.
    top: how many to show.
    run: the folder of a finished run; the newest of a joint embedding under `runs` if not given.
    runs: where runs are kept.
    sheet: also draw the images found into this PNG file.
    """
    from capbench.tools.search import captions_of_image, contact_sheet, images_of_sentence, retriever

    if (
        (query is None) == (image is None)
        or (query is not None) != (images is not None)
        or (image is not None) != (captions is not None)
    ):
        raise CapbenchError("give either a sentence with --images FOLDER, or --image FILE with --captions FILE")
    trained = retriever(run, runs)
    console.print(f"with {trained.job}", markup=False)
    found: list[tuple[object, float]] = []
    if query is not None and images is not None:
        pictures = images_of_sentence(trained, query, images, top)
        found += pictures
        if sheet is not None:
            contact_sheet([path for path, _ in pictures], sheet)
    elif image is not None and captions is not None:
        found += captions_of_image(trained, image, captions, top)
    for item, similarity in found:
        console.print(f"{similarity:7.3f}  {item}", markup=False, highlight=False)


@app.command
def caption(
    pictures: Path,
    /,
    *,
    beam: int | None = None,
    n_best: int = 1,
    attention: Path | None = None,
    sheet: Path | None = None,
    out: Path | None = None,
    run: Path | None = None,
    runs: Path = Path("runs"),
) -> None:
    """Write captions for a photograph, or for every one of a folder.

    Parameters
    ----------
    pictures: a picture file, or a folder of them.
    beam: width of the beam; the recipe's own if not given.
    n_best: captions for each picture.
    attention: also draw where the model looked for each word, into this PNG file; needs one picture.
    sheet: also draw the pictures with their captions into this PNG file.
    out: also write the captions and their log-probabilities to this JSON file.
    run: the folder of a finished run; the newest of a captioner under `runs` if not given.
    runs: where runs are kept.
    """
    from capbench.base.files import atomic_write
    from capbench.runs.loaded import pictures_in
    from capbench.tools.caption import captioner, captions_of, draw_attention, draw_sheet

    paths = pictures_in(pictures) if pictures.is_dir() else [pictures]
    if attention is not None and len(paths) != 1:
        raise CapbenchError(f"--attention draws one picture, and {pictures} has {len(paths)}")
    trained = captioner(run, runs)
    console.print(f"with {trained.job}", markup=False)
    found = captions_of(trained, paths, beam or max(trained.recipe.beam_size, n_best), n_best)
    if attention is not None and found[0].attention is None:
        raise CapbenchError(f"{trained.job} has no attention to draw; choose a run of show-attend-tell")
    for one in found:
        console.print(str(one.picture), markup=False, highlight=False)
        for words, log_prob in zip(one.captions, one.log_probs, strict=True):
            console.print(f"{log_prob:8.2f}  {words}", markup=False, highlight=False)
    if out is not None:
        rows = [{"picture": str(o.picture), "captions": o.captions, "log_probs": o.log_probs} for o in found]
        atomic_write(out, (json.dumps(rows, indent=1) + "\n").encode())
    if attention is not None:
        draw_attention(found[0], attention)
    if sheet is not None:
        draw_sheet(found, sheet)


@app.command(name="align")
def align_(
    photo: Path,
    caption: str,
    /,
    *,
    beta: float | None = None,
    run: Path | None = None,
    runs: Path = Path("runs"),
    out: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Find the region of a photograph that each word of a caption speaks of.

    Parameters
    ----------
    photo: a picture file.
    caption: the caption, one sentence.
    beta: how much neighbouring words prefer one region; with 0 each word chooses alone; the recipe's own unless given.
    run: the folder of a finished run; the newest of an alignment model under `runs` if not given.
    runs: where runs are kept.
    out: also draw the regions with their words into this PNG file.
    as_json: print JSON.
    """
    from capbench.tools import align as alignment

    trained = alignment.aligner(run, runs)
    found = alignment.align(trained, photo, caption, beta)
    if out is not None:
        alignment.draw_alignment(found, out)
    if as_json:
        print(json.dumps({"run": str(trained.job), **alignment.as_json(found)}, indent=1))
        return
    console.print(f"with {trained.job}", markup=False)
    for line in alignment.as_text(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 a check found something, 2 bad input, 75 stopped by a signal and saved."""
    try:
        app()
    except CapbenchError as error:
        Console(stderr=True).print(f"capbench: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(BAD_INPUT)
    except StoppedError:
        Console(stderr=True).print("stopped and saved; the same command goes on from here", markup=False)
        sys.exit(STOPPED)


class _Session:
    """Which jobs of one command are done, so that a stopped command goes on with the next and not from the first.

    `records` are the names of the records that they left, before and after the stop.
    """

    def __init__(self, path: Path, jobs: list[Job]) -> None:
        self.path, self.jobs = path, jobs
        try:
            saved = json.loads(path.read_text())
        except (OSError, ValueError):
            saved = {}
        names = [job.name for job in jobs]
        same = saved.get("jobs") == names
        self.names: list[str] = saved["done"] if same else []
        self.records: list[str] = saved.get("records", []) if same else []

    def remaining(self) -> list[Job]:
        return [job for job in self.jobs if job.name not in self.names]

    def add(self, job: Job, records: list[Path]) -> None:
        from capbench.base.files import atomic_write

        self.names.append(job.name)
        self.records += [record.name for record in records]
        state = {"jobs": [job.name for job in self.jobs], "done": self.names, "records": self.records}
        atomic_write(self.path, json.dumps(state).encode())

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)


class _Bars:
    """Progress of a command: one bar over the steps of the job in work, one line for each job that is done."""

    def __init__(self, owner: Paper, jobs: int) -> None:
        self.owner, self.jobs, self.count = owner, jobs, 0
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.progress = Progress(TextColumn("{task.description}"), *columns, console=console)
        self.task: TaskID | None = None

    def __enter__(self) -> _Bars:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def start(self, job: Job) -> None:
        self.count += 1
        self.progress.console.print(f"[{self.count}/{self.jobs}] {job}", markup=False, highlight=False)
        self.task = self.progress.add_task(f"{job.preset}, seed {job.seed}", total=None)

    def report(self, job: Job, state: State, batches: int) -> None:
        if self.task is None:
            return
        recipe = self.owner.recipe(job.preset, job.dataset)
        if batches:
            done = state.epoch * batches + state.step
            self.progress.update(self.task, completed=done, total=recipe.training.epochs * batches)
        else:
            entry, metric = state.curve[-1], metric_of(self.owner, asdict(recipe))
            score = entry["validation"][metric]
            loss = "" if entry["loss"] is None else f"  loss {entry['loss']:9.3f}"
            line = f"  epoch {entry['epoch'] + 1:3d}{loss}  {metric} {score:7.2f}"
            line += f"  {entry['seconds']:6.1f} s"
            self.progress.console.print(line, markup=False, highlight=False)

    def done(self, records: list[Path]) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
        for record in records:
            self.progress.console.print(f"  {record}", markup=False, highlight=False)


def _conclude(owner: Paper, places: Places, made: Collection[str], earlier: leaderboard.Earlier) -> None:
    """The tables in the terminal, whether what was made agrees with the earlier records, and the path of the page."""
    records = load_results(places.results, owner.name)
    there = [record for record in records if record.file in earlier.names and record.file not in made]
    found = leaderboard.compare((record for record in records if record.file in made), there)
    for table in leaderboard.terminal_tables(owner, records, found, earlier.word):
        console.print(table)
    for line in leaderboard.sentences(found, earlier.word):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    leaderboard.write(papers(), places.leaderboards)
    console.print(f"{places.leaderboards / owner.name}.md", markup=False, highlight=False)
