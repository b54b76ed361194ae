"""Which plots a paper's page has, and of what runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from operator import itemgetter

import numpy as np

from capbench.base.errors import CapbenchError
from capbench.base.grouping import grouped
from capbench.evidence.records import Result, load_arrays, warn_of_damage
from capbench.leaderboard.page import Picture
from capbench.leaderboard.plots import SWEEPS, Line, heat_map, learning_curves, recall_curves, slug, sweep_curves
from capbench.leaderboard.pooled import Runs, by_metric, parts
from capbench.runs.paper import Paper


def pictures(paper: Paper, groups: Sequence[Runs]) -> Iterator[tuple[Picture, bytes]]:
    """Every plot of these runs with its SVG, in the order of the page."""
    for draw in (_learning_curves, _recall_curves, _sweeps, _grids):
        yield from draw(paper, groups)


def _learning_curves(paper: Paper, groups: Sequence[Runs]) -> Iterator[tuple[Picture, bytes]]:
    """A plot for each data set, encoder and metric that chooses a snapshot."""
    for (dataset, encoder), group in parts(groups, "data", "encoder").items():
        title = f"{paper.name} on {dataset}, encoder {encoder}"
        trained = [runs for runs in _once_a_training(group) if any(record.curve for record in runs.records)]
        for metric, kind in by_metric(paper, trained).items():
            lines = _lines(kind, group)
            which = () if metric == paper.metric else (metric,)
            path = f"plots/{slug(paper.name, dataset, encoder, *which)}-curves.svg"
            words = " by ".join((f"Learning curves of {title}", *which))
            yield Picture("Learning curves", path, words, kind[0].embedded), learning_curves(title, lines, metric)


def _recall_curves(paper: Paper, groups: Sequence[Runs]) -> Iterator[tuple[Picture, bytes]]:
    """A plot for each data set, split, protocol and encoder that has ranks."""
    for values, group in parts(groups, "data", "split", "protocol", "encoder").items():
        dataset, split, protocol, encoder = values
        title = f"{paper.name} on {dataset}, {split} split, protocol {protocol}, encoder {encoder}"
        drawn = recall_curves(title, _lines(group, group), partial(_ranks, group))
        if drawn is not None:
            path = f"plots/{slug(paper.name, *values)}-recall.svg"
            yield Picture("Recall at K", path, f"Recall at K of {title}", group[0].embedded), drawn


def _sweeps(paper: Paper, groups: Sequence[Runs]) -> Iterator[tuple[Picture, bytes]]:
    """A plot for each data set, encoder and setting that was swept."""
    for (dataset, encoder), group in parts(groups, "data", "encoder").items():
        title = f"{paper.name} on {dataset}, encoder {encoder}"
        for sweep in SWEEPS:
            drawn = sweep_curves(title, _lines(group, group), sweep)
            if drawn is not None:
                path = f"plots/{slug(paper.name, dataset, encoder)}-{sweep.name}.svg"
                words = f"{sweep.metric} by {sweep.setting}: {title}"
                yield Picture("Sweeps", path, words, group[0].embedded), drawn


def _grids(paper: Paper, groups: Sequence[Runs]) -> Iterator[tuple[Picture, bytes]]:
    """A plot for each data set on which captioners of two encoders or more were run."""
    for (dataset,), group in parts(groups, "data").items():
        means = [(runs.first, runs.estimate("bleu4")) for runs in group]
        cells = {(record.encoder, record.variant): value.mean for record, value in means if value is not None}
        encoders, presets = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True)) if cells else ([], [])
        if len(encoders) > 1:
            title = f"BLEU-4 of {paper.name} on {dataset}, encoder by preset"
            drawn = heat_map(title, presets, encoders, cells)
            yield Picture("Grid", f"plots/{slug(paper.name, dataset)}-grid.svg", title, group[0].embedded), drawn


def _once_a_training(group: Sequence[Runs]) -> list[Runs]:
    """One training may be scored under several protocols; its curve is drawn once."""
    alike = {(runs.first.variant, runs.first.sees, runs.origin): runs for runs in reversed(group)}
    return list(alike.values())[::-1]


def _lines(chosen: Sequence[Runs], group: Sequence[Runs]) -> list[Line]:
    """Labels: the preset, its crop where `group` has several of one preset, where the records are from if not here."""
    crops = grouped({(runs.first.variant, runs.first.sees) for runs in group}, itemgetter(0))
    lines = []
    for runs in chosen:
        preset, sees = runs.first.variant, runs.first.sees
        words = (preset, sees if len(crops[preset]) > 1 else "", runs.origin)
        lines.append(Line(", ".join(filter(None, words)), runs.records))
    return lines


def _ranks(group: Sequence[Runs], record: Result) -> dict[str, np.ndarray]:
    """The arrays of a record of these runs, none where they are lost."""
    (folder,) = {runs.results.folder for runs in group if record in runs.records}
    try:
        return load_arrays(record, folder)
    except CapbenchError as error:
        warn_of_damage(error)
        return {}
