"""Every `capbench` command that a page prints is accepted by the command line, and names things that exist."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from capbench import leaderboard
from capbench.cli.app import app
from capbench.data.datasets import NAMES
from capbench.evidence.results import Results
from capbench.leaderboard.commands import encoder
from capbench.leaderboard.page import page
from capbench.runs.paper import papers
from capbench.vision.networks import check_name

RESULTS = Path(__file__).resolve().parents[1] / "leaderboards" / "results"
COMMAND = re.compile(r"^capbench .*$", re.M)


@cache
def printed(name: str) -> tuple[str, ...]:
    return tuple(COMMAND.findall(page(leaderboard.board(papers()[name], Results.load(RESULTS)), [])))


@pytest.mark.parametrize("name", list(papers()))
def test_each_command_of_a_page_parses_and_names_a_preset_a_data_set_and_an_encoder_that_exist(name):
    assert printed(name)
    for line in printed(name):
        command, bound, _ = app.parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)
        asked = bound.arguments
        assert command.__name__ == "run", line
        assert asked["paper"].replace("-", "_") == name, line
        assert asked["dataset"] in NAMES, line
        assert set(asked["preset"]) <= set(papers()[name].presets(asked["dataset"])), line
        for network in asked.get("encoder") or ():
            check_name(network)


def test_the_commands_cover_every_committed_record_and_every_preset_that_a_number_waits_for():
    for name, paper in papers().items():
        board = leaderboard.board(paper, Results.load(RESULTS))
        asked = [app.parse_args(shlex.split(line)[1:], print_error=False)[1].arguments for line in printed(name)]
        covered = {(preset, each["dataset"]) for each in asked for preset in each["preset"]}
        made = {(runs.first.preset, runs.first.dataset) for runs in board.runs}
        pending = {(m.preset, m.reported.dataset) for m in board.matches if m.verdict.status == "pending"}
        existing = {(preset, dataset) for preset, dataset in pending if preset in paper.presets(dataset)}
        assert made | existing <= covered


def test_the_commands_of_the_index_parse():
    results = Results.load(RESULTS)
    shown = leaderboard.index.page([leaderboard.board(paper, results) for paper in papers().values()], results)
    assert COMMAND.findall(shown)
    for line in COMMAND.findall(shown):
        assert (
            app.parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)[0].__name__ == "leaderboard"
        )


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("VGG19", "vgg19"), ("ResNet152", "resnet152"), ("AlexNet", "alexnet"), ("VGGNet", ""), ("R-CNN top-19", "")],
)
def test_an_encoder_of_a_paper_has_our_name_only_where_it_is_the_same(theirs, ours):
    assert encoder(theirs) == ours
