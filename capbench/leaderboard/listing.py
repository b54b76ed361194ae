"""What `capbench results`, `papers` and `show` list, as rows of plain values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capbench.base.errors import CapbenchError, unknown
from capbench.evidence.records import SYSTEMS
from capbench.evidence.results import Results
from capbench.leaderboard import systems
from capbench.leaderboard.board import Board, Match, board
from capbench.leaderboard.page import first_metrics
from capbench.leaderboard.pooled import Runs
from capbench.runs.paper import Paper
from capbench.runs.recipes import meaning, values

Row = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """Which results are listed; empty: all of that kind."""

    papers: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()  # "all": every one; none: those of the first tables of the pages


def results(papers: Mapping[str, Paper], committed: Results, local: Results, wanted: Wanted) -> list[Row]:
    """A row for each metric of each setting, the committed ones first: the mean over seeds, its interval, its verdict.

    The verdict is that on the paper's own number; where a paper has several such numbers, each has a row. Other
    systems, which are of the paper SYSTEMS, come last.
    Raises CapbenchError naming what no record has.
    """
    boards = [
        each
        for name, paper in papers.items()
        if name in wanted.papers or not wanted.papers
        for each in (board(paper, committed), board(paper, local.without(committed), "this machine"))
    ]
    listed = [(each.matches, runs) for each in boards for runs in each.runs]
    if SYSTEMS in wanted.papers or not wanted.papers:
        others = [*systems.gathered(committed), *systems.gathered(local.without(committed), "this machine")]
        listed += [((), runs) for runs in others]
    for field, names in (("variant", wanted.presets), ("dataset", wanted.datasets), ("encoder", wanted.encoders)):
        present = {value for _, runs in listed for value in _values_of(runs, field)}
        for name in names:
            if name not in present:
                what = "preset" if field == "variant" else field
                raise unknown(f"{what} with such a record", name, sorted(present))
        listed = [(matches, runs) for matches, runs in listed if not names or set(_values_of(runs, field)) & set(names)]
    known = sorted({key for _, runs in listed for key in runs.metrics})
    for key in wanted.metrics:
        if key not in (*known, "all"):
            raise unknown("metric of these records", key, known)
    return [row for matches, runs in listed for row in _of_runs(matches, runs, wanted.metrics)]


def _values_of(runs: Runs, field: str) -> tuple[str, ...]:
    """The names that a setting is chosen by; a preset that was changed by hand has that of the preset too."""
    return (runs.first.preset, runs.first.variant) if field == "variant" else (str(getattr(runs.first, field)),)


def _of_runs(matches: Sequence[Match], runs: Runs, metrics: tuple[str, ...]) -> Iterator[Row]:
    first = [entry.key for entry in first_metrics(runs.metrics, set()) if entry.key in runs.metrics]
    own = [match for match in matches if match.runs is runs and match.reported.role == "target"]
    for key in sorted(runs.metrics) if "all" in metrics else metrics or first:
        if key in runs.metrics:
            beside: list[Match | None] = [match for match in own if match.reported.metric == key]
            yield from (_of_metric(runs, key, match) for match in beside or [None])


def _of_metric(runs: Runs, key: str, match: Match | None) -> Row:
    estimate = runs.estimate(key)
    interval = estimate.interval if estimate else None
    return {
        "paper": runs.first.paper,
        "preset": runs.first.variant,
        "dataset": runs.data,
        "split": runs.first.split,
        "protocol": runs.first.protocol,
        "encoder": runs.first.encoder,
        "sees": runs.first.sees,
        "scoring": runs.first.scoring,
        "records": runs.origin or "committed",
        "metric": key,
        "mean": estimate.mean if estimate else None,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "seeds": len(estimate.values) if estimate else 0,
        "interval": interval.test if interval else None,
        "reported": match.reported.value if match else None,
        "system": match.reported.system if match else None,
        "verdict": match.verdict.status if match else None,
    }


def listed_papers(papers: Iterable[Paper], committed: Results) -> list[Row]:
    """A row for each paper: what it is, what can be run of it, and what the committed records make of its numbers."""
    return [_of_paper(board(paper, committed)) for paper in papers]


def _of_paper(made: Board) -> Row:
    paper, tally = made.paper, made.tally("target")
    return {
        "paper": paper.name,
        "title": paper.title,
        "citation": paper.citation,
        "presets": list(paper.presets("flickr8k")),
        "headline": list(paper.headline),
        "datasets": list(dict.fromkeys(runs.first.dataset for runs in made.runs if runs.canonical)),
        "seeds": sum(len(runs.records) for runs in made.runs),
        "reported": sum(tally.values()),
        "matched": tally["exceeds"] + tally["reproduced"],
        "close": tally["close"],
        "short": tally["short"],
        "not_run": tally["not run"],
        "claims": len(made.outcomes),
        "claims_hold": sum(outcome.status == "holds" for _, outcome in made.outcomes),
    }


def of_preset(papers: Mapping[str, Paper], name: str, dataset: str) -> tuple[Paper, str]:
    """The paper and the preset that a name stands for: `vsepp/vsepp-ours`, or `vsepp-ours` where one paper has it.

    Raises CapbenchError naming the known presets, or the papers that have one of this name.
    """
    owner, slash, preset = name.rpartition("/")
    among = [paper for key, paper in papers.items() if not slash or key == owner.replace("-", "_")]
    if not among:
        raise unknown("paper", owner, papers)
    found = [paper for paper in among if preset in paper.presets(dataset)]
    if not found:
        raise unknown("preset", preset, [each for paper in among for each in paper.presets(dataset)])
    if len(found) > 1:
        names = " or ".join(f"{paper.name}/{preset}" for paper in found)
        raise CapbenchError(f"several papers have a preset {preset}: say {names}")
    return found[0], preset


def plain_preset(paper: Paper, preset: str, dataset: str) -> str | None:
    """The paper's own preset that one of ours is made from, by their names: the longest that ours begins with.

    >>> from capbench.runs.paper import paper
    >>> plain_preset(paper("vsepp"), "vsepp-negatives-4-ours", "scenes")
    'vsepp'
    """
    if not preset.endswith("-ours"):
        return None
    own = [name for name in paper.presets(dataset) if not name.endswith("-ours") and preset.startswith(f"{name}-")]
    return max(own, key=len, default=None)


def recipe(paper: Paper, preset: str, dataset: str) -> list[Row]:
    """A row for each field of a preset's recipe as it runs on a data set, with its value in the paper's own preset."""
    of_preset, own = paper.recipe(preset, dataset), plain_preset(paper, preset, dataset)
    present = _as_json(values(of_preset))
    plain = _as_json(values(paper.recipe(own, dataset))) if own else {}
    return [
        {
            "field": field,
            "value": value,
            "differs": field in plain and plain[field] != value,
            "paper": plain.get(field),
            "meaning": meaning(of_preset, field),
        }
        for field, value in present.items()
    ]


def _as_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(fields))
    return found
