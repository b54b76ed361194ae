"""The plots: what is drawn, what is written on them, and that nothing outside the records changes them."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from capbench.evidence.records import Epoch, Result
from capbench.leaderboard import plots
from capbench.leaderboard.plots import (
    DEPTHS,
    SWEEPS,
    Line,
    collapsed_loss,
    heat_map,
    learning_curves,
    recall_at,
    recall_curves,
    sweep_curves,
)
from tests.test_leaderboard import record, three_seeds

SPACE = "{http://www.w3.org/2000/svg}"


def words(picture: bytes) -> list[str]:
    """Every text of an SVG."""
    return ["".join(node.itertext()).strip() for node in ElementTree.fromstring(picture).iter(f"{SPACE}text")]


def ranks(_: Result) -> dict[str, np.ndarray]:
    return {"image_to_caption": np.arange(100), "caption_to_image": np.arange(500)}


def curve(*losses: float) -> list[Epoch]:
    return [
        Epoch(epoch=epoch, loss=loss, learning_rate=1e-3, seconds=1.0, validation={"rsum": 10.0 * epoch})
        for epoch, loss in enumerate(losses)
    ]


def test_learning_curves_name_their_axes_units_and_lines():
    shown = words(
        learning_curves("vsepp on flickr8k", [Line("hard", three_seeds()), Line("sum", [record("sum")])], "rsum")
    )
    assert {"vsepp on flickr8k", "validation", "training", "epoch", "hard", "sum", "snapshot tested"} <= set(shown)
    assert "rsum, the sum of the six recalls (points)" in shown
    assert "mean loss of a batch" in shown


def test_the_plateau_of_the_max_of_hinges_is_drawn_at_twice_the_margin_times_the_batch():
    assert collapsed_loss(record("hard")) == 51.2
    assert "max of hinges, collapsed: 51.2" in words(learning_curves("t", [Line("hard", [record("hard")])], "rsum"))


def test_a_recipe_of_another_loss_or_of_unknown_form_has_no_plateau():
    assert collapsed_loss(record("sum")) is None
    for recipe in ({}, {"loss": "max_of_hinges"}, {"loss": "max_of_hinges", "margin": "x", "training": [1]}):
        assert collapsed_loss(record(recipe=recipe)) is None
    assert not any("collapsed" in word for word in words(learning_curves("t", [Line("s", [record("sum")])], "rsum")))


def test_losses_far_apart_are_drawn_on_a_log_scale_which_the_axis_says():
    lines = [Line("hard", [record(curve=curve(50, 40))]), Line("sum", [record("sum", curve=curve(6000, 5000))])]
    assert "mean loss of a batch, log scale" in words(learning_curves("t", lines, "rsum"))


def test_the_mean_goes_as_far_as_every_seed_does():
    axes = Figure().subplots()
    plots._draw(axes, [{1: 1.0, 2: 2.0, 3: 3.0}, {1: 3.0, 2: 4.0}], "black", None)
    mean = axes.lines[-1]
    assert np.array_equal(mean.get_xydata(), [[1, 2.0], [2, 3.0]])
    assert len(axes.lines) == 3


def test_a_run_without_the_validation_metric_still_has_its_loss_drawn():
    learning_curves("t", [Line("hard", [record(curve=curve(3.0, 2.0))])], "cider")


def test_the_legend_stands_right_of_every_tick_and_title():
    lines = [Line(f"preset {number}", [record(seed=number)]) for number in range(12)]
    root = ElementTree.fromstring(learning_curves("t", lines, "rsum"))
    places: dict[bool, list[float]] = {True: [], False: []}
    for node in root.iter(f"{SPACE}text"):
        x = re.search(r"translate\(([\d.]+)", node.get("transform", ""))
        left = float(x.group(1)) if x else float(node.get("x", 0))
        places["".join(node.itertext()).startswith("preset")].append(left)
    own = [place for place in places[False] if place not in places[True]]
    assert len(places[True]) == 12
    assert min(places[True]) > max(own)


def test_recall_curves_show_both_directions_against_k():
    picture = recall_curves("t", [Line("hard", three_seeds())], ranks)
    assert picture is not None
    shown = words(picture)
    assert {"image to caption", "caption to image", "recall at K (%)", "hard", "1", "10", "100"} <= set(shown)


def test_records_without_ranks_have_no_recall_curve():
    assert recall_curves("t", [Line("hard", three_seeds())], lambda _: {}) is None


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=40))
def test_recall_at_is_the_share_of_ranks_below_each_depth(values):
    wanted = [100.0 * sum(value < depth for value in values) / len(values) for depth in DEPTHS]
    np.testing.assert_allclose(recall_at(np.array(values, dtype=np.int32)), wanted)


def test_names_with_markup_dollars_or_an_underscore_in_front_are_drawn_as_they_are():
    names = ["_hidden", "$\\frac$", "<script>&", "a\nb\x00"]
    shown = words(learning_curves("$x_", [Line(name, [record(seed=seed)]) for seed, name in enumerate(names)], "rsum"))
    assert {"_hidden", "$\\frac$", "<script>&", "a b\ufffd", "$x_"} <= set(shown)


def test_the_user_s_settings_of_matplotlib_change_nothing_and_are_left_alone():
    lines = [Line("hard", three_seeds())]
    plain = learning_curves("t", lines, "rsum")
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red", "svg.hashsalt": "x"}):
        assert learning_curves("t", lines, "rsum") == plain
        assert matplotlib.rcParams["font.size"] == 30
    assert b"<dc:date>" not in plain


def test_beams_are_drawn_where_a_record_has_several():
    wide = record(metrics={"bleu4_beam1": 10.0, "bleu4_beam20": 12.0, "bleu4": 12.0})
    picture = sweep_curves("t", [Line("wide", [wide]), Line("plain", [record()])], SWEEPS[0])
    assert picture is not None
    assert {"wide", "BLEU-4", "20"} <= set(words(picture))
    assert "plain" not in words(picture)
    assert sweep_curves("t", [Line("plain", [record()])], SWEEPS[0]) is None


def test_a_grid_writes_its_numbers_and_leaves_missing_cells_white():
    cells = {("vgg19", "lstm"): 18.76, ("vgg19", "gru"): 17.0, ("alexnet", "lstm"): 15.21}
    shown = words(heat_map("t", ["lstm", "gru"], ["vgg19", "alexnet"], cells))
    assert {"vgg19", "alexnet", "lstm", "gru", "18.8", "17.0", "15.2"} <= set(shown)
    assert sum(bool(re.fullmatch(r"\d+\.\d", word)) for word in shown) == 3
