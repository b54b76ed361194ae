"""The plots: what is drawn, what is written on them, and that nothing outside the records changes them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
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

ROOT = Path(__file__).resolve().parents[1]
SPACE = "{http://www.w3.org/2000/svg}"
SIDES = ("width", "height")


def words(picture: bytes) -> list[str]:
    """Every text of an SVG."""
    return ["".join(node.itertext()).strip() for node in ElementTree.fromstring(picture).iter(f"{SPACE}text")]


def places(picture: bytes) -> Iterator[tuple[str, float, float, float]]:
    """(text, x, y, size of the font) of every text of an SVG, in points."""
    for node in ElementTree.fromstring(picture).iter(f"{SPACE}text"):
        moved = re.search(r"translate\(([-\d.]+) ([-\d.]+)\)", node.get("transform", ""))
        x, y = moved.groups() if moved else (node.get("x", ""), node.get("y", ""))
        size = re.search(r"font: (?:\w+ )?([\d.]+)px|font-size: ([\d.]+)px", node.get("style", ""))
        assert size is not None
        yield "".join(node.itertext()).strip(), float(x), float(y), float(size[1] or size[2])


def paths(picture: bytes, panel: str, colour: str) -> list[list[tuple[float, float]]]:
    """The points of the thick lines of one colour in one panel of an SVG."""
    lines = []
    for group in ElementTree.fromstring(picture).iter(f"{SPACE}g"):
        if group.get("id") == panel:
            for path in group.iter(f"{SPACE}path"):
                style = path.get("style", "")
                if "stroke-width: 1.8" in style and colour.lower() in style:
                    points = re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path.get("d", ""))
                    lines.append([(float(x), float(y)) for x, y in points])
    return lines


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
    assert {"vsepp on flickr8k", "epoch", "hard", "sum", "snapshot tested"} <= set(shown)
    assert "validation: rsum, the sum of the six recalls (points)" in shown
    assert "training: mean loss of a batch" in shown


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
    assert "training: mean loss of a batch, log scale" in words(learning_curves("t", lines, "rsum"))


def test_the_mean_goes_as_far_as_every_seed_does():
    axes = Figure().subplots()
    plots._draw(axes, [{1: 1.0, 2: 2.0, 3: 3.0}, {1: 3.0, 2: 4.0}], {"color": "black"})
    mean = axes.lines[-1]
    assert np.array_equal(mean.get_xydata(), [[1, 2.0], [2, 3.0]])
    assert len(axes.lines) == 3


def test_a_run_without_the_validation_metric_still_has_its_loss_drawn():
    picture = learning_curves("t", [Line("hard", [record(curve=curve(3.0, 2.0))])], "cider")
    assert not any(paths(picture, "axes_1", plots._COLOURS[0]))
    ((first, second),) = paths(picture, "axes_2", plots._COLOURS[0])
    assert first[0] < second[0]
    assert first[1] < second[1]  # SVG counts down: the loss falls


def test_the_legend_stands_below_every_tick_and_title():
    lines = [Line(f"preset {number}", [record(seed=number)]) for number in range(12)]
    heights = [(word, y) for word, _, y, _ in places(learning_curves("t", lines, "rsum"))]
    legend = [y for word, y in heights if word.startswith("preset")]
    assert len(legend) == 12
    assert min(legend) > max(y for word, y in heights if not word.startswith(("preset", "snapshot", "max of")))


@pytest.mark.parametrize("kind", ["curves", "recall", "sweep", "grid"])
def test_on_a_phone_every_text_is_inside_the_picture_and_high_enough_to_read(kind):
    title = "show_attend_tell on flickr8k, test split, protocol whole, encoder squeezenet1_0, other data of that name"
    lines = [Line(f"a preset with a name as long as can be, {number}", three_seeds()) for number in range(3)]
    swept = [Line("wide", [record(metrics={"bleu4_beam1": 10.0, "bleu4_beam20": 12.0})])]
    cells = {(f"encoder_number_{y}", f"preset-number-{x}"): 18.0 + x - y for x in range(6) for y in range(4)}
    columns, encoders = (list(dict.fromkeys(names)) for names in zip(*((c, r) for r, c in cells), strict=True))
    picture = {
        "curves": lambda: learning_curves(title, lines, "rsum"),
        "recall": lambda: recall_curves(title, lines, ranks),
        "sweep": lambda: sweep_curves(title, swept, SWEEPS[0]),
        "grid": lambda: heat_map(title, columns, encoders, cells),
    }[kind]()
    assert picture is not None
    width, height = (float(ElementTree.fromstring(picture).get(side, "").removesuffix("pt")) for side in SIDES)
    for word, x, y, size in places(picture):
        assert size * 390 / width >= 9, word  # pixels on a screen 390 wide
        assert 0 <= x < width, word
        assert 0 < y <= height, word
    shown = " ".join(words(picture))
    assert all(word in shown for word in title.split())


def test_lines_of_a_plot_differ_in_dashes_or_in_lightness():
    def light(colour: str) -> float:
        return sum(part * int(colour[at : at + 2], 16) for part, at in ((0.299, 1), (0.587, 3), (0.114, 5)))

    styles = [plots.style_of(place) for place in range(8)]
    assert len({style["color"] for style in styles}) == 8
    for first, second in combinations(styles, 2):
        assert first["linestyle"] != second["linestyle"] or abs(light(first["color"]) - light(second["color"])) > 30


def test_recall_curves_show_both_directions_against_k():
    picture = recall_curves("t", [Line("hard", three_seeds())], ranks)
    assert picture is not None
    shown = words(picture)
    assert {f"{way}: recall at K (%)" for way in ("image to caption", "caption to image")} <= set(shown)
    assert {"hard", "1", "10", "100"} <= set(shown)


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
    assert {"wide", "test: BLEU-4", "width of the beam", "9", "20"} <= set(words(picture))
    assert "plain" not in words(picture)
    assert sweep_curves("t", [Line("plain", [record()])], SWEEPS[0]) is None


def test_beams_are_drawn_to_scale():
    wide = record(metrics={f"bleu4_beam{beam}": 10.0 for beam in (1, 9, 20)})
    picture = sweep_curves("t", [Line("wide", [wide])], SWEEPS[0])
    assert picture is not None
    (points,) = paths(picture, "axes_1", plots._COLOURS[0])
    one, nine, twenty = (x for x, _ in points)
    assert (twenty - nine) / (nine - one) == pytest.approx(11 / 8, rel=1e-3)


def test_an_affinity_of_0_has_a_place_on_the_broken_log_axis_and_doublings_are_equal_steps():
    metrics = {f"snippet_f1_beta{beta:g}": 50.0 for beta in SWEEPS[1].values}
    picture = sweep_curves("t", [Line("brnn", [record(metrics=metrics)])], SWEEPS[1])
    assert picture is not None
    (points,) = paths(picture, "axes_1", plots._COLOURS[0])
    steps = np.diff([x for x, _ in points])
    assert len(steps) == len(SWEEPS[1].values) - 1
    assert steps[0] > 0
    np.testing.assert_allclose(steps[1:], steps[1], rtol=1e-3)
    assert "affinity of neighbouring words (log scale above 0.25)" in words(picture)


def test_a_backend_that_is_not_there_changes_nothing():
    program = "import sys; from capbench.leaderboard.plots import heat_map; "
    program += "sys.stdout.buffer.write(heat_map('t', ['a'], ['b'], {('b', 'a'): 1.0}))"
    environment = {**os.environ, "MPLBACKEND": "module://missing", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=250)
    assert run.stdout == heat_map("t", ["a"], ["b"], {("b", "a"): 1.0})


def test_a_grid_writes_its_numbers_and_leaves_missing_cells_white():
    cells = {("vgg19", "lstm"): 18.76, ("vgg19", "gru"): 17.0, ("alexnet", "lstm"): 15.21}
    shown = words(heat_map("t", ["lstm", "gru"], ["vgg19", "alexnet"], cells))
    assert {"vgg19", "alexnet", "lstm", "gru", "18.8", "17.0", "15.2"} <= set(shown)
    assert sum(bool(re.fullmatch(r"\d+\.\d", word)) for word in shown) == 3
