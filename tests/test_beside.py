"""The figure at the head of a page: ours beside what the paper reports."""

from __future__ import annotations

from dataclasses import replace

import pytest

from capbench import leaderboard
from capbench.leaderboard.beside import MOST, Pair, _pairs, beside, dots
from capbench.leaderboard.board import board
from capbench.leaderboard.page import page
from capbench.metrics.registry import metric
from tests.test_leaderboard import NASTY, fake, record, reported, saved, scenes_of_today  # noqa: F401 - a fixture
from tests.test_plots import words

MEDIAN = reported(metric="image_to_caption_median_rank", value="2", unit="rank")
OTHER = reported(system="Another", role="baseline", value="30.0", preset="", compare_with=("hard",))


def drawn(paper, results):
    return list(beside(board(paper, results)))


def test_the_paper_s_own_numbers_come_before_those_of_other_systems(tmp_path):
    results = saved(tmp_path, record())
    ((own, picture),) = drawn(fake(tmp_path / "both", reported(), OTHER), results)
    assert own.words == "fake on flickr8k: ours beside the paper"
    assert {"image to caption R@1", "the paper", f"hard, {record().encoder}, 1 seed"} <= {*map(str, words(picture))}
    ((others, _),) = drawn(fake(tmp_path / "others", OTHER), results)
    assert others.words == "fake on flickr8k: ours beside the best other system"


def test_a_rank_is_not_drawn_on_the_scale_of_recalls_and_bleu(tmp_path):
    results = saved(tmp_path, record())
    assert drawn(fake(tmp_path / "p", MEDIAN), results) == []
    ((_, picture),) = drawn(fake(tmp_path / "q", MEDIAN, reported()), results)
    assert not any("median" in word for word in words(picture))


def test_a_page_without_a_number_to_compare_with_has_no_such_figure(tmp_path):
    paper, results = fake(tmp_path / "p"), saved(tmp_path, record())
    assert drawn(paper, results) == []
    assert "beside" not in "".join(leaderboard.render(board(paper, results)))


def test_the_figure_stands_above_the_tables(tmp_path):
    of = board(fake(tmp_path / "p", reported()), saved(tmp_path, record()))
    ((picture, _),) = beside(of)
    shown = page(of, [picture])
    assert shown.index("numbers:") < shown.index(f"]({picture.path})") < shown.index("## flickr8k")
    assert picture.path in leaderboard.render(of)


def test_of_many_settings_those_furthest_ahead_are_drawn(tmp_path):
    recalls = {f"net{number}": 10.0 * number for number in range(1, MOST + 3)}
    results = saved(tmp_path, *(record(encoder=encoder, r1=value) for encoder, value in recalls.items()))
    ((_, picture),) = drawn(fake(tmp_path / "p", reported()), results)
    found = {name for name in recalls if any(word.startswith(f"hard, {name},") for word in words(picture))}
    assert found == set(list(recalls)[-MOST:])
    assert any(word.startswith(f"the best {MOST} of {MOST + 2} settings") for word in words(picture))


def test_the_mean_the_interval_and_the_reported_number_stand_at_their_values(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    seen: list[list[float]] = []
    real = Axes.plot

    def plot(self, x, *more, **style):
        seen.append(list(x))
        return real(self, x, *more, **style)

    monkeypatch.setattr(Axes, "plot", plot)
    results = saved(tmp_path, *(record(seed=seed, r1=value) for seed, value in enumerate((40.0, 42.0, 44.0))))
    drawn(fake(tmp_path / "p", reported(value="41.5")), results)
    (low, high), mean, theirs = seen
    assert (mean, theirs) == ([42.0], [41.5])
    half = 4.302652729911275 * 2 / 3**0.5  # Student's t of two degrees of freedom at 97.5 %
    assert [low, high] == pytest.approx([42 - half, 42 + half])


def test_the_reported_number_is_that_which_the_tables_judge_by_and_of_other_systems_the_best(tmp_path):
    results = saved(tmp_path, record())
    own = fake(tmp_path / "p", reported(value="20.0", encoder=record().encoder), reported(value="60.0"))
    others = fake(tmp_path / "q", OTHER, replace(OTHER, value="60.0", system="More"), OTHER)
    assert [pair.reported for pair in _pairs(board(own, results), "target")] == [20.0]
    assert [pair.reported for pair in _pairs(board(others, results), "baseline")] == [60.0]


def test_names_from_outside_are_text(tmp_path):
    results = saved(tmp_path, record(encoder=NASTY))
    (runs,) = board(fake(tmp_path / "p", reported()), results).runs
    picture = dots(NASTY, [Pair(runs, metric("image_to_caption_r1"), 40.0)], NASTY)
    assert b"<script" not in picture
    assert words(picture)
