"""The finished runs that have a gallery: asked once, kept in the cache; and why the others have none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from capbench.base.errors import CapbenchError
from capbench.base.files import fingerprint, sha256
from capbench.base.json_records import read_record
from capbench.base.progress import reporter
from capbench.captioners.experiment import Captioner
from capbench.evidence.records import Result, load_arrays
from capbench.runs.job import Description, Job, description
from capbench.runs.loaded import Usable, load_run, usable_runs
from capbench.site.gallery import asking
from capbench.site.gallery.shown import VERSION, Shown, keep, kept
from capbench.site.gallery.thumbnails import file_name
from capbench.site.gallery.unseen import Looked, Unseen
from capbench.tools.align import Aligner
from capbench.tools.search import JointEmbedding
from capbench.training import checkpoint


class Kind(NamedTuple):
    """What a model does, and how it is asked."""

    name: str
    title: str
    ask: Callable[[Looked, asking.Arrays, int], Shown]


CAPTIONS = Kind("captions", "Captions", asking.written)
REGIONS = Kind("regions", "Captions of regions", asking.described)
ALIGNMENT = Kind("alignment", "Alignment", asking.joined)
SEARCH = Kind("search", "Search", asking.found)


@dataclass(frozen=True, eq=False)
class Gallery:
    """A run and what its gallery shows."""

    name: str  # of its files: no other run's
    kind: Kind
    job: Job
    view: str  # what the model sees of a picture
    record: Result | None  # of its test; None where it is gone
    test: Unseen
    shown: Shown


def galleries(
    runs: Path, results: Path, pictures: int, left_out: Callable[[str], object], dataset: str | None = None
) -> list[Gallery]:
    """A gallery for each finished run under `runs`, with so many pictures; `left_out` is told why another has none.

    The records are those of `runs`, else those of `results`. `dataset` leaves the runs on others out. A bar shows how
    far the models are.
    """
    usable, refused = usable_runs(runs, new_pictures=False)
    usable = [run for run in usable if dataset in (None, run.job.dataset)]
    for reason in refused:
        left_out(reason)
    made: list[Gallery] = []
    unseen = cache(Unseen.of)
    with reporter(True, "galleries") as report:
        for done, run in enumerate(sorted(usable, key=_order), start=1):
            try:
                made.append(_gallery(run, unseen, (runs / "records", results), pictures))
            except CapbenchError as error:
                left_out(f"{run.folder}: {error}")
            report(done * pictures, len(usable) * pictures)
    return made


def _order(run: Usable) -> tuple[str, ...]:
    return run.job.dataset, run.job.paper, run.job.variant, run.job.encoder, f"{run.job.seed:06d}", run.folder.name


@torch.no_grad()
def _gallery(run: Usable, unseen: Callable[[str], Unseen], places: tuple[Path, ...], pictures: int) -> Gallery:
    described = description(run.folder)
    kind = _kind(run, described)
    test = unseen(run.job.dataset)
    record, arrays = _record(described, places)
    of_record = record.dataset_fingerprint if record else ""
    identity = {"dataset": of_record, **described.identity}  # that of released weights names no data set
    if identity["dataset"] not in ("", test.whole.fingerprint):
        made = "import" if "released" in identity else "train"
        raise CapbenchError(f"its data set {run.job.dataset} has changed since; {made} it again")
    identity["dataset"] = test.whole.fingerprint
    weights = run.folder / checkpoint.SNAPSHOT
    if not weights.is_file():
        raise CapbenchError(f"{weights.name} is missing; train it again")
    key = fingerprint([
        VERSION, identity, sha256(weights), record and record.arrays_sha256, test.pixels, pictures,
    ])  # fmt: skip
    shown = kept(key)
    if shown is None:
        looked = Looked.at(load_run(run.folder), test, identity.get("features", ""))
        shown = kind.ask(looked, arrays, pictures)
        keep(key, shown)
    return Gallery(
        file_name(f"{run.folder.parent.name}-{run.folder.name}"),
        kind,
        run.job,
        identity["recipe"]["view"],
        record,
        test,
        shown,
    )


def _kind(run: Usable, described: Description) -> Kind:
    """Raises CapbenchError for a model of another kind."""
    if isinstance(run.model, Captioner):
        return REGIONS if described.identity["recipe"].get("level") == "regions" else CAPTIONS
    if isinstance(run.model, Aligner):
        return ALIGNMENT
    if isinstance(run.model, JointEmbedding):
        return SEARCH
    raise CapbenchError("it writes no captions, aligns no words and embeds no sentences: it has no gallery")


def _record(described: Description, places: tuple[Path, ...]) -> tuple[Result | None, asking.Arrays]:
    """The first record of a run with its arrays; nothing where it is gone."""
    for folder in places:
        for name in described.records[:1]:
            try:
                record = read_record(Result, folder / name)
                return record, load_arrays(record, folder)
            except CapbenchError:
                continue
    return None, {}
