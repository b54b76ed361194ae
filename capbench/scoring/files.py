"""The files of the four kinds of outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.scoring.arrays import as_ids, one_array, read_arrays, read_ids
from capbench.scoring.coco_results import read_results
from capbench.scoring.ids import Key
from capbench.scoring.outputs import Captions, Embeddings, Outputs, Ranking, Similarity, Table

_AT_ONCE = 2**24  # numbers that are looked through at once


def read_outputs(path: Path) -> Outputs:
    """Outputs from one file: captions (.json), ranked lists (.trec, .run) or arrays (.npy, .npz, .safetensors).

    Arrays are a similarity matrix where they have one of that name or no name, else embeddings.
    Raises CapbenchError as the readers of each kind do, and for any other ending.
    """
    if path.suffix == ".json":
        return read_captions(path)
    if path.suffix in (".trec", ".run"):
        return read_ranking(path)
    if path.suffix == ".npy" or "similarity" in read_arrays(path, "similarity"):
        return read_similarity(path)
    return read_embeddings(path)


def read_captions(path: Path) -> Captions:
    """Captions in COCO's results format. Raises CapbenchError naming the file and the field that is wrong."""
    named, captions = zip(*read_results(path), strict=True)
    return Captions(captions, named, str(path))


def read_embeddings(
    images: Path, captions: Path | None = None, image_ids: Path | None = None, caption_ids: Path | None = None
) -> Embeddings:
    """Embeddings from two files, or from one that has both as `images` and `captions`.

    Ids are from files of their own, or the arrays `image_ids` and `caption_ids` of .npz and .safetensors.
    Raises CapbenchError naming file, row and id of a value that is not finite, and for vectors of unequal widths.
    """
    if captions is None and images.suffix == ".npy":
        raise CapbenchError(f"{images} holds one array; give a second file, of the captions")
    embeddings = Embeddings(
        _table(images, "images", "image_ids", image_ids),
        _table(captions or images, "captions", "caption_ids", caption_ids),
    )
    widths = [table.rows.shape[1] for table in (embeddings.images, embeddings.captions)]
    if len(set(widths)) > 1:
        several = (
            f"{images} has image vectors of {widths[0]} numbers, {captions or images} caption vectors of {widths[1]}"
        )
        raise CapbenchError(f"{several}; give both from one joint space")
    return embeddings


def read_similarity(path: Path, image_ids: Path | None = None, caption_ids: Path | None = None) -> Similarity:
    """A similarity matrix [image, caption] from .npy, or as `similarity` from .npz or .safetensors.

    Ids are as in `read_embeddings`. Raises CapbenchError naming file, row and id of a NaN.
    """
    matrix, others = one_array(path, "similarity", "image_ids", "caption_ids")
    of_images = _ids(path, "image_ids", image_ids, others, matrix.shape[0], "rows")
    of_captions = _ids(path, "caption_ids", caption_ids, others, matrix.shape[1], "columns")
    _refuse(matrix, torch.isnan, of_images, path, "NaN")
    return Similarity(matrix, of_images, of_captions, str(path))


def read_ranking(*paths: Path) -> Ranking:
    """Ranked lists in TREC's run format: `qid Q0 docid rank score tag` on each line, white space between.

    Lists are ordered by their scores, as trec_eval orders them; a rank that contradicts them is refused.
    Raises CapbenchError naming the file and the line that is wrong.
    """
    frames = [_trec(path) for path in paths]
    lists = pd.concat(frames, ignore_index=True)
    source = " and ".join(map(str, paths))
    return Ranking(lists["qid"].to_numpy(), lists["docid"].to_numpy(), lists["score"].to_numpy(np.float64), source)


def _table(path: Path, name: str, ids_name: str, ids: Path | None) -> Table:
    rows, others = one_array(path, name, ids_name)
    keys = _ids(path, ids_name, ids, others, len(rows), "rows")
    _refuse(rows, lambda block: ~block.isfinite(), keys, path, "a value that is not finite")
    return Table(rows, keys, str(path))


def _ids(
    path: Path, name: str, file: Path | None, others: dict[str, np.ndarray | Tensor], length: int, noun: str
) -> tuple[Key, ...] | None:
    """The ids in `file`, else those beside the array of `path`. Raises CapbenchError where they are not `length`."""
    if file is None and name not in others:
        return None
    ids = as_ids(others[name], f"{path}, {name}") if file is None else read_ids(file)
    if len(ids) != length:
        where = f"{file} {len(ids):,} ids" if file else f"{len(ids):,} {name}"
        raise CapbenchError(f"{path} has {length:,} {noun} and {where}; give one id for each")
    return ids


def _refuse(
    matrix: Tensor, faulty: Callable[[Tensor], Tensor], ids: tuple[Key, ...] | None, path: Path, what: str
) -> None:
    """Raises CapbenchError for the first row with a faulty number."""
    at_once = max(1, _AT_ONCE // matrix.shape[1])
    for start in range(0, len(matrix), at_once):
        rows = faulty(matrix[start : start + at_once]).any(1).nonzero()
        if len(rows):
            row = start + int(rows[0])
            whose = "" if ids is None else f" (id {ids[row]})"
            raise CapbenchError(f"{path}, row {row}{whose}: {what}; compute the row again, or leave it out")


def _trec(path: Path) -> pd.DataFrame:
    names = ["qid", "Q0", "docid", "rank", "score", "tag", "more"]
    kinds = dict.fromkeys(names, str)
    try:
        table = pd.read_csv(
            path, sep=r"\s+", names=names, dtype=kinds, quoting=3, na_filter=False, index_col=False,
            skip_blank_lines=False,
        )  # fmt: skip
    except OSError as error:
        raise CapbenchError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # as pandas' own errors are
        fault = " ".join(str(error).split())
        raise CapbenchError(f"cannot read {path}: {fault}; a line is `qid Q0 docid rank score tag`") from error
    table = table[(table != "").any(axis=1)]  # blank lines count in the index, and so in messages
    if table.empty:
        raise CapbenchError(f"{path} has no line; a line is `qid Q0 docid rank score tag`")
    numbers = table[["rank", "score"]].apply(pd.to_numeric, errors="coerce")
    wrong = numbers.isna().any(axis=1) | (table["tag"] == "") | (table["more"] != "")
    if wrong.any():
        place = int(wrong.to_numpy().argmax())
        found = " ".join(table.iloc[place]).strip()
        raise CapbenchError(
            f"{path}, line {int(table.index[place]) + 1}: {found!r} is not `qid Q0 docid rank score tag`"
        )
    table = table.assign(rank=numbers["rank"], score=numbers["score"])
    _refuse_contradiction(path, table)
    return table


def _refuse_contradiction(path: Path, table: pd.DataFrame) -> None:
    """Raises CapbenchError where a candidate of a higher rank has a lower score, as with distances for scores."""
    ordered = table.sort_values(["qid", "rank"], kind="stable")
    same = ordered["qid"].to_numpy()[1:] == ordered["qid"].to_numpy()[:-1]
    wrong = same & (np.diff(ordered["score"].to_numpy()) > 0)
    if wrong.any():
        line = int(ordered.index[1:][wrong][0])
        query = table["qid"].loc[line]
        raise CapbenchError(
            f"{path}, line {line + 1}: query {query} has a higher score at a later rank; scores are closeness, "
            "and fall with the rank"
        )
