"""`capbench score` and `capbench rescore`: outputs of any system, and old records, under today's metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from capbench.base.errors import CapbenchError
from capbench.cli.options import Dataset, Json, OneOrMore, Seed, Split
from capbench.cli.output import console, say

if TYPE_CHECKING:
    from capbench.data.captions import CaptionDataset
    from capbench.metrics.registry import Metric
    from capbench.scoring.outputs import Outputs
    from capbench.training.experiment import Evaluation

# Spelled out here because the modules that define them import torch; a test compares the two.
Protocol = Literal["whole", "1K", "5-fold 1K", "5K", "eccv", "cxc"]
Similarity = Literal["cosine", "dot", "order"]
Rule = Literal["coco-caption", "coco-caption-no-bp", "as-written", "as-written-no-bp"]

score = App(name="score", help="Score the outputs of any system under a data set's protocol.")


@Parameter(name="*")
@dataclass(frozen=True)
class Under:
    """What outputs are scored under, and what becomes of the scores."""

    dataset: Dataset = "scenes"
    "The data set that the outputs are of."

    split: Split = "test"
    "The split that they are of."

    protocol: Protocol = "whole"
    """The whole split; its first 1,000 images (1K); or of 5,000 images the mean over thousands (5-fold 1K) or all (5K).
    Of COCO's 5,000 test images also all that fits: ECCV Caption (eccv) or CxC (cxc), with `capbench[eccv]`."""

    system: str | None = None
    "The name of the system, for its record."

    seed: Seed = 0
    "Which of several seeds of the system this is, for its record."

    record: bool = False
    "Write a record; `capbench records add` copies it, and the page of other systems shows it."

    runs: Path = Path("runs")
    "The folder of your runs; records go into its `records`."

    as_json: Json = False
    "Print metrics, notes and signature as JSON."


@score.command
def captions(results: Path, /, *, rule: Rule = "coco-caption", under: Under | None = None) -> None:
    """Score captions in COCO's results format: a JSON list of objects with a caption and its image.

    Parameters
    ----------
    results
        The file. An image is named by `image_id`, `file_name` or `image`: an id of the split file, or a file name.
    rule
        The rule whose metrics are shown first; all are computed.
    """
    from capbench.scoring.files import read_captions

    _score("captions", partial(read_captions, results), (results,), under or Under(), rule=rule)


@score.command
def embeddings(
    images: Path,
    captions: Path | None = None,
    /,
    *,
    image_ids: Path | None = None,
    caption_ids: Path | None = None,
    similarity: Similarity = "cosine",
    under: Under | None = None,
) -> None:
    """Score image-caption retrieval by embeddings in a joint space.

    Parameters
    ----------
    images
        Image vectors, one row an image: .npy, or `images` in .npz or .safetensors.
    captions
        Caption vectors; not needed where the first file has both.
    image_ids
        The ids of the image rows: .npy, .txt with one a line, or a .json list. If not given: `image_ids` in the first
        file, else the order of the split file.
    caption_ids
        The ids of the caption rows, likewise.
    similarity
        The cosine, which takes vectors of length 1; the dot product; or that of order embeddings.
    """
    from capbench.scoring.files import read_embeddings

    files = tuple(path for path in (images, captions, image_ids, caption_ids) if path is not None)
    read = partial(read_embeddings, images, captions, image_ids, caption_ids)
    _score("embeddings", read, files, under or Under(), similarity=similarity)


@score.command(name="similarity")
def similarities(
    matrix: Path,
    /,
    *,
    image_ids: Path | None = None,
    caption_ids: Path | None = None,
    under: Under | None = None,
) -> None:
    """Score image-caption retrieval by a whole matrix of similarities.

    Parameters
    ----------
    matrix
        One row an image, one column a caption, higher is closer: .npy, or `similarity` in .npz or .safetensors.
    image_ids
        The ids of the rows: .npy, .txt with one a line, or a .json list. If not given: `image_ids` in the file, else
        the order of the split file.
    caption_ids
        The ids of the columns, likewise.
    """
    from capbench.scoring.files import read_similarity

    files = tuple(path for path in (matrix, image_ids, caption_ids) if path is not None)
    _score("similarity", partial(read_similarity, matrix, image_ids, caption_ids), files, under or Under())


@score.command
def ranking(lists: Annotated[list[Path], OneOrMore], /, *, under: Under | None = None) -> None:
    """Score image-caption retrieval by ranked lists. What a list that is cut off cannot tell is left out, and said.

    Parameters
    ----------
    lists
        One file or two in TREC's run format, `qid Q0 docid rank score tag`: captions for each image, images for each
        caption, or both. Scores order a list; the higher the closer.
    """
    from capbench.scoring.files import read_ranking

    _score("ranking", partial(read_ranking, *lists), tuple(lists), under or Under())


@score.command
def collection(
    images: Path,
    captions: Path,
    owners: Path,
    /,
    *,
    similarity: Similarity = "cosine",
    processes: int = 1,
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """Rank images and captions of any number, which no data set knows and no memory holds: the files are mapped.

    Parameters
    ----------
    images
        Image vectors, one row an image: .npy.
    captions
        Caption vectors, likewise.
    owners
        For each caption the row of its image, from 0: .npy. Every image has a caption.
    similarity
        The cosine, which takes vectors of length 1; the dot product; or that of order embeddings.
    processes
        How many processes rank a share of the images each.
    out
        Where to write the ranks, as .npz. With it, what is stopped or killed continues.
    as_json
        Print the metrics as JSON.
    """
    from capbench.metrics.retrieval import retrieval_metrics
    from capbench.scoring.collection import Collection, rank_collection

    if out is not None and out.suffix != ".npz":
        raise CapbenchError(f"the ranks are written as .npz, not to {out}; rename it")
    ranks = rank_collection(Collection(images, captions, owners, similarity), processes, out, progress=True)
    metrics = retrieval_metrics(ranks)
    if as_json:
        print(json.dumps(metrics, indent=1))
        return
    _print(metrics)
    if out is not None:
        say(out)


def rescore(
    records: Annotated[list[Path], OneOrMore],
    /,
    *,
    record: bool = False,
    runs: Path = Path("runs"),
    as_json: Json = False,
) -> None:
    """Score the captions and ranks of old records again with the metrics of today, and print both.

    Parameters
    ----------
    records
        The JSON files of records, each with its .npz file beside it.
    record
        Write new records, whose notes say which they were made from.
    runs
        The folder of your runs; new records go into its `records`.
    as_json
        Print the metrics, old and new, as JSON.
    """
    from capbench.base.json_records import read_record
    from capbench.data.datasets import load_dataset
    from capbench.evidence.records import Result
    from capbench.scoring.records import record_again, rescored

    read = [(path, read_record(Result, path)) for path in records]
    datasets: dict[str, CaptionDataset] = {}
    for path, old in read:
        if old.dataset not in datasets:
            try:
                datasets[old.dataset] = load_dataset(old.dataset)
            except CapbenchError as error:
                raise CapbenchError(f"{path} is of the data set {old.dataset}: {error}") from error
    made = [(path, old, rescored(old, path.parent, datasets[old.dataset])) for path, old in read]
    if as_json:
        rows = [{"record": path.name, "old": old.metrics, "new": dict(new.metrics)} for path, old, new in made]
        print(json.dumps(rows, indent=1))
    for path, old, new in made:
        if not as_json:
            say(path)
            _print(new.metrics, old.metrics, tokenizer=old.tokenizer)
        if record:
            written = record_again(old, new, runs / "records")
            if not as_json:
                say(written)


def _score(kind: str, read: Callable[[], Outputs], files: tuple[Path, ...], under: Under, **options: str) -> None:
    from datetime import UTC, datetime

    from capbench.data.datasets import load_dataset
    from capbench.evidence.records import signature_of
    from capbench.scoring.records import System, record_system
    from capbench.scoring.score import score as score_outputs
    from capbench.scoring.signature import RULES

    if under.record and under.system is None:
        raise CapbenchError("--record needs --system NAME, under which pages show it")
    system = System("unnamed" if under.system is None else under.system, kind, files, under.seed)
    started, outputs = datetime.now(UTC), read()
    split = load_dataset(under.dataset).split(under.split)
    evaluation = score_outputs(outputs, split, under.protocol, **options)
    written: Path | None = None
    if under.record:
        where = under.runs / "records"
        written = record_system(system, evaluation, split, under.protocol, options, where, started)
    if under.as_json:
        print(json.dumps(_document(evaluation, under, written), indent=1))
        return
    rule = RULES[options["rule"]] if "rule" in options else ""
    _print(evaluation.metrics, rule=rule, tokenizer=split.dataset.metric_tokenizer)
    for note in evaluation.notes:
        if not signature_of([note]):
            say(note)
    say(signature_of(evaluation.notes))
    if written is not None:
        say(written)


def _document(evaluation: Evaluation, under: Under, written: Path | None) -> dict[str, Any]:
    from capbench.evidence.records import signature_of

    setting = {name: getattr(under, name) for name in ("system", "dataset", "split", "protocol")}
    notes = [note for note in evaluation.notes if not signature_of([note])]
    signature = signature_of(evaluation.notes)
    document = {**setting, "metrics": dict(evaluation.metrics), "notes": notes, "signature": signature}
    return document | ({"record": str(written)} if written else {})


def _print(
    metrics: Mapping[str, float], old: Mapping[str, float] | None = None, rule: str = "", tokenizer: str = ""
) -> None:
    """A table of metrics, those of the rule first; with `old`, another column of them."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from capbench.metrics import registry

    known = registry.columns(metrics, lesser=True)
    several = len({entry.rule for entry in known if entry.rule}) > 1
    table = Table(box=SIMPLE_HEAD, padding=0)
    for heading in ("metric", *(["scored by"] if several else [])):
        table.add_column(heading)
    for heading in ["value"] if old is None else ["old", "new"]:
        table.add_column(heading, justify="right")
    for entry in sorted(known, key=lambda entry: entry.rule not in (rule, "")) if rule else known:
        values = [_cell(each, entry) for each in ([metrics] if old is None else [old, metrics])]
        table.add_row(entry.name, *([registry.rule(entry.key, tokenizer)] if several else []), *values)
    console.print(table)


def _cell(metrics: Mapping[str, float], entry: Metric) -> str:
    return f"{metrics[entry.key]:.{entry.digits}f}" if entry.key in metrics else "–"
