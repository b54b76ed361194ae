"""The two sides of `capbench compare`, found by their names."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path

from capbench.base.errors import CapbenchError, unknown
from capbench.base.grouping import grouped
from capbench.base.json_records import read_record
from capbench.cli.options import recorded_name
from capbench.data.datasets import load_dataset
from capbench.evidence.comparison import DATA, Side, side
from capbench.evidence.records import Result, load_arrays
from capbench.evidence.resampling import Arrays
from capbench.evidence.results import Results, data_name
from capbench.leaderboard.pooled import setting
from capbench.scoring.files import read_outputs
from capbench.scoring.records import LONGEST_NAME, System, system_result
from capbench.scoring.score import score

OUTPUTS = (".npy", ".npz", ".safetensors", ".trec", ".run")  # endings of files that other systems write; and .json

Run = tuple[Result, Callable[[], Arrays]]  # a record, and what gives its arrays
Group = Sequence[Run]  # the runs of one setting, one a seed


@dataclass(frozen=True)
class Among:
    """Where presets are looked for, and the settings that are wanted of them; None: any.

    Outputs are of the test split and the protocol "whole" where none is wanted.
    """

    folders: Sequence[Path]  # of records; a preset is taken from the first that has it
    dataset: str | None = None  # as on the command line
    split: str | None = None
    protocol: str | None = None
    encoders: tuple[str | None, str | None] = (None, None)  # of A and of B


def sides(a: str, b: str, among: Among) -> tuple[Side, Side]:
    """The sides that two names stand for.

    Raises CapbenchError for a name that stands for nothing, and where no pair of settings, or more than one, is alike
    in data, split and protocol. Settings with the same encoder go before others.
    """
    of_a, of_b = (named(name, among, encoder) for name, encoder in zip((a, b), among.encoders, strict=True))
    pairs = [pair for pair in product(of_a, of_b) if _data(pair[0]) == _data(pair[1])]
    if not pairs and len(of_a) == len(of_b) == 1:
        pairs = [(of_a[0], of_b[0])]  # the comparison says in what they differ
    if not pairs:
        where = "; ".join(f"{name} on {', '.join(map(_words, groups))}" for name, groups in ((a, of_a), (b, of_b)))
        raise CapbenchError(f"{a} and {b} have no runs on the same data, split and protocol: {where}")
    pairs = [pair for pair in pairs if pair[0][0][0].encoder == pair[1][0][0].encoder] or pairs
    if len(pairs) > 1:
        found = dict.fromkeys(_words(group) for pair in pairs for group in pair)
        raise CapbenchError(
            f"{a} and {b} have runs on {len(found)} settings, choose one with --dataset, --encoder, --split or "
            f"--protocol, or name record files: {'; '.join(found)}"
        )
    if [record for record, _ in pairs[0][0]] == [record for record, _ in pairs[0][1]]:
        raise CapbenchError(f"{a} and {b} are the same records; name two systems, or two encoders with --encoder")
    return _side(pairs[0][0]), _side(pairs[0][1])


def named(name: str, among: Among, encoder: str | None = None) -> list[Group]:
    """The groups of runs that a name may stand for: of an outputs file, of record files, or of a preset, one a setting.

    Raises CapbenchError for files that are neither, and for a preset without a record, or of several papers.
    """
    if _holds_outputs(Path(name)):
        return [_of_outputs(Path(name), among)]
    if name.endswith(".json"):
        return [_of_files(name)]
    dataset = recorded_name(among.dataset) if among.dataset else None
    wanted = {"dataset": dataset, "split": among.split, "protocol": among.protocol, "encoder": encoder}
    return _of_preset(name, among.folders, {field: value for field, value in wanted.items() if value is not None})


def _of_files(names: str) -> Group:
    """Records of one setting, from file names between commas, each of which may be a pattern."""
    paths = [Path(path) for name in names.split(",") for path in sorted(glob.glob(name)) or [name]]
    return [_run(read_record(Result, path), path.parent) for path in paths]


def _holds_outputs(path: Path) -> bool:
    """Whether a file holds what a system made; a record is JSON, too, but no list."""
    if path.suffix == ".json" and path.is_file():
        with path.open("rb") as file:
            return file.read(100).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    return path.suffix in OUTPUTS


def _of_outputs(path: Path, among: Among) -> Group:
    """What outputs score on the data set, split and under the protocol that are asked for."""
    if among.dataset is None:
        raise CapbenchError(f"{path} holds outputs, which do not say what they are of; give --dataset")
    protocol, started = among.protocol or "whole", datetime.now(UTC)
    outputs, split = read_outputs(path), load_dataset(among.dataset).split(among.split or "test")
    evaluation = score(outputs, split, protocol)
    system = System(path.name[-LONGEST_NAME:], type(outputs).__name__.lower(), (path,))
    return [(system_result(system, evaluation, split, protocol, {}, started), lambda: evaluation.arrays)]


def _of_preset(name: str, folders: Sequence[Path], wanted: Mapping[str, str]) -> list[Group]:
    loaded = [Results.load(folder) for folder in folders]
    known = [record for results in loaded for record in results.records if name in _names(record)]
    if not known:
        present = sorted({record.variant for results in loaded for record in results.records})
        raise unknown("preset with a record", name, present)
    if len(papers := sorted({record.paper for record in known})) > 1:
        raise CapbenchError(f"several papers have a preset {name}: say {' or '.join(f'{p}/{name}' for p in papers)}")
    for results in loaded:
        mine = [record for record in results.select(**wanted).latest.records if name in _names(record)]
        if chosen := [*Results(results.folder, tuple(mine)).canonical.records] or mine:
            return [[_run(each, results.folder) for each in group] for group in grouped(chosen, setting).values()]
    asked = ", ".join(f"{field} {value}" for field, value in wanted.items())
    there = "; ".join(dict.fromkeys(_words([_run(record, Path())]) for record in known))
    raise CapbenchError(f"{name} has no record with {asked}; there are records on {there}")


def _names(record: Result) -> Iterator[str]:
    """A preset's own name, and with its paper's in front of it, whose words are joined by _ or -."""
    yield record.variant
    yield f"{record.paper}/{record.variant}"
    yield f"{record.paper.replace('_', '-')}/{record.variant}"


def _run(record: Result, folder: Path) -> Run:
    return record, partial(load_arrays, record, folder)


def _data(group: Group) -> tuple[str, ...]:
    return tuple(str(getattr(group[0][0], name)) for name in DATA)


def _words(group: Group) -> str:
    record = group[0][0]
    model = ", ".join(filter(None, (record.encoder, record.sees, record.scoring)))
    return f"{data_name(record)} ({record.split}, {record.protocol}) with {model}"


def _side(group: Group) -> Side:
    first = group[0][0]
    name = f"{first.paper}/{first.variant} with {first.encoder}" if first.encoder else f"{first.paper}/{first.variant}"
    return side(name, [record for record, _ in group], [load() for _, load in group])
