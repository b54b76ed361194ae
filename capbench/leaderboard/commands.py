"""The `capbench run` commands that pages print. Each names a preset, a data set and an encoder that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

from pydantic import JsonValue

from capbench.base.errors import CapbenchError
from capbench.base.grouping import grouped
from capbench.data.datasets import NAMES
from capbench.evidence.records import assignments
from capbench.evidence.verdicts import Reported
from capbench.leaderboard.board import Board
from capbench.leaderboard.pooled import Runs, parts
from capbench.runs.paper import Paper
from capbench.vision.networks import ENCODERS, TIMM, outside

_NAMED = 12  # rows of the paper that a comment names


def missing(board: Board) -> list[str]:
    """The commands whose runs the numbers without a verdict wait for, each below a comment that names its rows.

    A paper's encoder that is not one of ours is named in the comment, and the command leaves the choice to the default.
    """
    waiting = [match.reported for match in board.matches if match.verdict.status == "pending"]
    wanted: dict[tuple[str, str], dict[str, list[Reported]]] = {}  # by data set and encoder, then by preset
    for number in sorted(waiting, key=lambda number: number.role != "target"):
        ours = encoder(number.encoder) if number.role == "target" else ""
        for preset in number.presets:
            planned = any(dataset == number.dataset and preset in presets for (dataset, _), presets in wanted.items())
            if _exists(board.paper, preset, number.dataset) and not (planned and number.role == "baseline"):
                wanted.setdefault((number.dataset, ours), {}).setdefault(preset, []).append(number)
    lines = []
    for (dataset, ours), presets in wanted.items():
        numbers = [number for of_preset in presets.values() for number in of_preset]
        places = list(dict.fromkeys(map(_row, numbers)))
        rest = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
        strange = dict.fromkeys(n.encoder for n in numbers if n.role == "target" and not encoder(n.encoder))
        remark = f"; the paper uses {', '.join(strange)}, which capbench does not have" if strange else ""
        lines.append(f"# for {', '.join(places[:_NAMED])}{rest}{remark}")
        lines.append(command(board.paper, list(presets), dataset, ours))
    return lines


def again(board: Board) -> list[str]:
    """The commands that make the records of a board again, presets of one data set and encoder together."""
    return [line for runs in parts(board.runs, "dataset", "encoder").values() for line in _again(board.paper, runs)]


def encoder(name: str) -> str:
    """Our name of a paper's encoder, "" where we have none.

    >>> encoder("VGG19"), encoder("ResNet-152"), encoder("VGGNet")
    ('vgg19', 'resnet152', '')
    """
    return {_letters(known): known for known in ENCODERS}.get(_letters(name), "")


def _again(paper: Paper, group: Sequence[Runs]) -> Iterator[str]:
    dataset, network = group[0].first.dataset, group[0].first.encoder
    together: dict[str, list[str]] = {}
    for settings in grouped(group, lambda runs: runs.first.variant).values():
        preset, overrides = settings[0].first.preset, settings[0].first.overrides
        known = network in ENCODERS or network.startswith(TIMM) or outside(network)
        if known and _exists(paper, preset, dataset, overrides):
            seeds = sorted({record.seed for runs in settings for record in runs.records})
            joined = paper.recipe(preset, dataset, overrides).ensemble_size > 1  # --seeds counts models, not ensembles
            whole = seeds == list(range(len(seeds))) and not joined
            by_hand = "".join(f"--set {shlex.quote(each)} " for each in assignments(overrides))
            for words in [f"--seeds {len(seeds)}"] if whole else [f"--seed {seed}" for seed in seeds]:
                together.setdefault(by_hand + words, []).append(preset)
    for words, presets in together.items():
        yield f"{command(paper, presets, dataset, network)} {words}"


def _exists(paper: Paper, preset: str, dataset: str, overrides: Mapping[str, JsonValue] | None = None) -> bool:
    if dataset not in NAMES or preset not in paper.presets(dataset):
        return False
    try:
        paper.recipe(preset, dataset, overrides)
    except CapbenchError:  # a field that was set by hand is there no more
        return False
    return True


def command(paper: Paper, presets: Sequence[str], dataset: str, network: str = "") -> str:
    """The command that runs presets on a data set, with an encoder unless it is left to the default."""
    words = ["capbench", "run", paper.name.replace("_", "-"), "--preset", *presets, "--dataset", dataset]
    return shlex.join([*words, *(["--encoder", network] if network else [])])


def _row(number: Reported) -> str:
    """The row of the paper in a few words: "3.13", else the system."""
    place = re.fullmatch(r"Table \S+, row (\S+).*", number.table)
    return place[1] if place else number.system


def _letters(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()
