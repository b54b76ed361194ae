"""The plots as SVG, legible on a phone. The same records give the same bytes, whatever the user's matplotlib settings.

A figure is narrow, so that a page scales its text little: panels stand one above the other, the legend below. Lines
differ in dashes as well as colour, for greyscale; the background is white, for dark pages.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FixedLocator, Formatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from capbench.base.files import fingerprint
from capbench.evidence.records import Result
from capbench.leaderboard.markdown import plain
from capbench.metrics.alignment import BETAS
from capbench.metrics.registry import metric as known_metric

DEPTHS = np.array([*range(1, 11), 12, 14, 17, 20, 25, 30, 40, 50, 60, 80, 100])
DIRECTIONS = {"image_to_caption": "image to caption", "caption_to_image": "caption to image"}
_LOG_FROM = 20  # losses that span a larger ratio are drawn on a log scale
_WIDTH, _PANEL = 5.6, 2.3  # inches of a figure, and of the height of a panel
_TITLE = 56  # characters of a line of the title
# Okabe and Ito's colours and two more, dark before light: lines with the same dashes differ in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#6B4C9A", "#E69F00", "#56B4E9", "#CC79A7", "#999999")
Dashes = tuple[float, Sequence[float]] | None
_DASHES: tuple[Dashes, ...] = (None, (0.0, (4.0, 1.5)), (0.0, (1.0, 1.2)), (0.0, (5.0, 1.2, 1.0, 1.2)))
_MARKERS = "osD^vP*X"
_COLLAPSED: Any = {"color": "black", "linestyle": (0, (1, 3)), "linewidth": 1}
_STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "capbench", "text.parse_math": False,
    "font.family": "sans-serif", "font.size": 10,
    "font.sans-serif": ["DejaVu Sans"],  # it comes with matplotlib, so labels are measured alike everywhere
    "axes.titlesize": 10, "axes.titlelocation": "left", "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.6,
    "legend.frameon": False, "legend.handlelength": 3.0,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Line:
    """One entry of the legend."""

    label: str
    records: Sequence[Result]  # of one setting, one for each seed


def learning_curves(title: str, lines: Sequence[Line], metric: str) -> bytes:
    """Validation `metric` and training loss against epoch, as SVG: a thin line a seed, a thick one their mean.

    A dot is the snapshot that was tested. A dotted line stands at the loss of a collapsed embedding where a
    recipe has the max of hinges (`collapsed_loss`).
    """
    shown = known_metric(metric)
    losses = [loss for line in lines for record in line.records for loss in _loss(record).values()]
    logarithmic = bool(losses) and min(losses) > 0 and max(losses) / min(losses) > _LOG_FROM
    with figure_of(title, 2) as (figure, (top, bottom), save):
        top.set_title(f"validation: {shown.name}" + (f" ({shown.unit})" if shown.unit else ""))
        bottom.set(title="training: mean loss of a batch" + (", log scale" if logarithmic else ""), xlabel="epoch")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
        for line, style in _styled(lines):
            _draw(top, [_validation(record, metric) for record in line.records], style)
            _draw(bottom, [_loss(record) for record in line.records], style)
        for line, style in _styled(lines):
            for curve, best in ((_validation(record, metric), record.best_epoch + 1) for record in line.records):
                if best in curve:
                    top.plot([best], [curve[best]], "o", color=style["color"], markersize=4)
        levels = sorted({level for line in lines for r in line.records if (level := collapsed_loss(r)) is not None})
        for level in levels:
            bottom.axhline(level, **_COLLAPSED)
        if logarithmic:
            bottom.set_yscale("log")
            _log_axis(bottom.yaxis)
        handles = _handles(lines)
        handles += [(f"max of hinges, collapsed: {level:g}", Line2D([], [], **_COLLAPSED)) for level in levels]
        dot = Line2D([], [], color="#555555", marker="o", markersize=4, linestyle="")
        legend_below(figure, [*handles, ("snapshot tested", dot)])
        return save()


def recall_curves(
    title: str, lines: Sequence[Line], ranks: Callable[[Result], Mapping[str, np.ndarray]]
) -> bytes | None:
    """Recall at K against K in both directions, as SVG; None where no record has (0-based) ranks."""
    arrays = {line: [ranks(record) for record in line.records] for line in lines}
    drawn = [line for line in lines if any(name in each for each in arrays[line] for name in DIRECTIONS)]
    if not drawn:
        return None
    with figure_of(title, 2) as (figure, panels, save):
        for axes, (direction, name) in zip(panels, DIRECTIONS.items(), strict=True):
            axes.set(title=f"{name}: recall at K (%)", xscale="log", ylim=(0, 100), xlim=(1, 100))
            _ticks(axes.xaxis, [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0])
            for line, style in _styled(drawn):
                recalls = (recall_at(each[direction]).tolist() for each in arrays[line] if direction in each)
                _draw(axes, [dict(zip(DEPTHS.tolist(), recall, strict=True)) for recall in recalls], style)
        panels[-1].set_xlabel("K, the number of items looked at (log scale)")
        legend_below(figure, _handles(drawn))
        return save()


@dataclass(frozen=True)
class Sweep:
    """A metric that records have for several values of a setting."""

    prefix: str  # prefix + value is the metric's name in a record: "bleu4_beam" + "3"
    setting: str  # the label of the axis
    metric: str
    values: tuple[float, ...]
    name: str  # in file names
    log_above: float | None = None  # the axis is linear below this value and logarithmic above it; None: all linear

    def of(self, record: Result) -> dict[float, float]:
        """The metric by value of the setting."""
        names = {value: f"{self.prefix}{value:g}" for value in self.values}
        return {value: record.metrics[name] for value, name in names.items() if name in record.metrics}


SWEEPS = (
    Sweep("bleu4_beam", "width of the beam", "BLEU-4", (*map(float, range(1, 10)), 20.0), "beams"),
    Sweep("snippet_f1_beta", "affinity of neighbouring words (log scale above 0.25)", "F1 of snippets (%)", BETAS,
          "affinity", log_above=0.25),
)  # fmt: skip


def sweep_curves(title: str, lines: Sequence[Line], sweep: Sweep) -> bytes | None:
    """A metric against a setting, as SVG; None where no record was scored with several values of it."""
    drawn = [line for line in lines if any(len(sweep.of(record)) > 1 for record in line.records)]
    if not drawn:
        return None
    with figure_of(title, 1) as (figure, (axes,), save):
        axes.set(title=f"test: {sweep.metric}", xlabel=sweep.setting)
        if sweep.log_above is not None:
            axes.set_xscale("symlog", linthresh=sweep.log_above, base=2)
        _ticks(axes.xaxis, sweep.values)
        for line, style in _styled(drawn):
            _draw(axes, [sweep.of(record) for record in line.records], style | {"marker": "o", "markersize": 3})
        legend_below(figure, _handles(drawn))
        return save()


def heat_map(title: str, columns: Sequence[str], rows: Sequence[str], cells: Mapping[tuple[str, str], float]) -> bytes:
    """A number for each (row, column), as SVG; the darker the higher. A cell that is missing stays white."""
    values = np.array([[cells.get((row, column), np.nan) for column in columns] for row in rows])
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    names = [plain(name, 24) for name in columns]
    with figure_of(title, 1, 0.6 + 0.5 * len(rows)) as (_, (axes,), save):
        axes.imshow(values, cmap="Blues", aspect="auto", vmin=0.8 * np.nanmin(values), vmax=1.05 * np.nanmax(values))
        crowded = sum(map(len, names)) > 45 or max(map(len, names)) * len(names) > 45
        turned: Any = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
        axes.set_xticks(range(len(columns)), names, **turned)
        axes.set_yticks(range(len(rows)), [plain(name, 24) for name in rows])
        axes.grid(visible=False)
        for y, row in enumerate(rows):
            for x, column in enumerate(columns):
                if (row, column) in cells:
                    colour = "white" if cells[row, column] > middle else "black"
                    axes.text(x, y, f"{cells[row, column]:.1f}", ha="center", va="center", color=colour)
        return save()


@dataclass(frozen=True)
class Point:
    """One timed variant."""

    label: str
    intensity: float  # FLOP a byte
    rate: float  # TFLOP/s
    ours: bool  # drawn full; a baseline is hollow


def roofline(title: str, copy: float, product: Mapping[str, float], points: Sequence[Point]) -> bytes:
    """TFLOP/s against FLOP a byte below the measured ceilings (`copy` GB/s, `product` TFLOP/s by type), as SVG."""
    knees = [1e3 * rate / copy for rate in product.values()]
    ends = np.array([*(point.intensity for point in points), *knees])
    span = np.geomspace(ends.min() / 2, ends.max() * 2, 200)
    with figure_of(title, 1, 3.2) as (figure, (axes,), save):
        axes.set(xscale="log", yscale="log", title="TFLOP/s (log scale); full: ours, hollow: the strongest baseline",
                 xlabel="FLOP for each byte that must be read or written (log scale)")  # fmt: skip
        handles = []
        for (dtype, rate), dashes in zip(sorted(product.items()), _DASHES * len(product), strict=False):
            (ceiling,) = axes.plot(span, np.minimum(span * copy / 1e3, rate), "black", linestyle=dashes, linewidth=1)
            handles.append((f"ceiling, {dtype}: {rate:.3g} TFLOP/s, {copy:.3g} GB/s", ceiling))
        styles: dict[str, dict[str, Any]] = {}
        for point in points:
            new = {"color": _COLOURS[len(styles) % 8], "marker": _MARKERS[len(styles) % 8], "linestyle": ""}
            style = styles.setdefault(point.label, new)
            face = style["color"] if point.ours else "none"
            axes.plot(point.intensity, point.rate, markersize=5.5, markerfacecolor=face, **style)
        for axis in (axes.xaxis, axes.yaxis):
            _log_axis(axis)
        legend_below(figure, [*handles, *((label, Line2D([], [], **style)) for label, style in styles.items())])
        return save()


@dataclass(frozen=True)
class Series:
    """One variant over several sizes."""

    label: str
    seconds: Mapping[int, float]  # by number of pairs of an image and a caption
    peak: Mapping[int, int]  # bytes, likewise


Drawn = TypeVar("Drawn", Line, Series)


def scaling(title: str, series: Sequence[Series]) -> bytes:
    """Time and peak memory against the number of pairs, all on log scales, as SVG."""
    with figure_of(title, 2) as (figure, (top, bottom), save):
        top.set_title("time (log scale)")
        bottom.set(title="peak memory beyond the inputs (log scale)", xlabel="images x captions (log scale)")
        for variant, style in _styled(series):
            for axes, values in ((top, variant.seconds), (bottom, variant.peak)):
                axes.plot(list(values), list(values.values()), marker="o", markersize=4, **style)
        for axes, unit in ((top, "s"), (bottom, "B")):
            axes.set(xscale="log", yscale="log")
            _log_axis(axes.xaxis, EngFormatter(sep="\u00a0"))
            _log_axis(axes.yaxis, EngFormatter(unit, sep="\u00a0"))
        legend_below(figure, _handles(series))
        return save()


def slug(*words: str) -> str:
    """A file name; one that had to be changed carries a hash, so that no two settings share it.

    >>> slug("vsepp", "flickr8k"), slug("a b")
    ('vsepp-flickr8k', 'a_b-5e229e24')
    """
    whole = "-".join(words)
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in whole)[:100]
    return safe if safe == whole else f"{safe}-{fingerprint(whole)[:8]}"


def recall_at(ranks: np.ndarray) -> np.ndarray:
    """Percentage of the queries whose 0-based rank is below each of DEPTHS."""
    counts = np.bincount(np.minimum(ranks, DEPTHS[-1]), minlength=DEPTHS[-1] + 1)
    shares: np.ndarray = 100.0 * np.cumsum(counts)[DEPTHS - 1] / max(1, len(ranks))
    return shares


def collapsed_loss(record: Result) -> float | None:
    """The loss of a batch whose similarities are all equal under the max of hinges, 2 x margin x batch size.

    None where the recipe names another loss. The published VSE++ recipe starts on this plateau.
    """
    training, margin = record.recipe.get("training"), record.recipe.get("margin")
    size = training.get("batch_size") if isinstance(training, dict) else None
    known = record.recipe.get("loss") == "max_of_hinges"
    if not known or not isinstance(margin, int | float) or not isinstance(size, int | float):
        return None
    return round(2.0 * margin * size, 6)


@contextmanager
def figure_of(
    title: str, panels: int, panel: float = _PANEL
) -> Iterator[tuple[Figure, Sequence[Axes], Callable[[], bytes]]]:
    """A figure in our style alone, its panels (each `panel` inches high), and a function that returns its SVG."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        title = plain(title, 120)
        lines = textwrap.wrap(title, _TITLE, drop_whitespace=True) or [""]
        figure = Figure(figsize=(_WIDTH, 0.2 * len(lines) + panels * panel + 0.5), layout="constrained")
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        axes = figure.subplots(panels, 1, squeeze=False, sharex=True)[:, 0]

        def save() -> bytes:
            buffer = io.BytesIO()
            about = {"Title": title, "Creator": "capbench leaderboard", "Date": None}
            figure.savefig(buffer, format="svg", backend="svg", metadata=about)  # whatever MPLBACKEND says
            return buffer.getvalue()

        yield figure, list(axes), save


def style_of(place: int) -> dict[str, Any]:
    """How the line at this place of the legend is drawn."""
    return {"color": _COLOURS[place % 8], "linestyle": _DASHES[place % 4], "linewidth": 1.8}


def _styled(lines: Sequence[Drawn]) -> Iterator[tuple[Drawn, dict[str, Any]]]:
    return ((line, style_of(place)) for place, line in enumerate(lines))


def _handles(lines: Sequence[Drawn]) -> list[tuple[str, Line2D]]:
    return [(line.label, Line2D([], [], **style)) for line, style in _styled(lines)]


def _draw(axes: Axes, curves: Sequence[Mapping[Any, float]], style: Mapping[str, Any]) -> None:
    """Thin lines, and their mean as far as all of them go."""
    curves = [curve for curve in curves if curve]
    for curve in curves if len(curves) > 1 else ():
        axes.plot(list(curve), list(curve.values()), color=style["color"], linewidth=0.6, alpha=0.5)
    shared = [step for step in (curves[0] if curves else ()) if all(step in curve for curve in curves)]
    means = [sum(curve[step] for curve in curves) / len(curves) for step in shared]
    lone = {"marker": "o", "markersize": 4} if len(shared) == 1 else {}
    axes.plot(shared, means, **{**style, **lone})


def _validation(record: Result, metric: str) -> dict[int, float]:
    """By epoch, the first being 1."""
    return {epoch.epoch + 1: epoch.validation[metric] for epoch in record.curve if metric in epoch.validation}


def _loss(record: Result) -> dict[int, float]:
    return {epoch.epoch + 1: epoch.loss for epoch in record.curve if epoch.loss is not None}


def _ticks(axis: Axis, values: Sequence[float]) -> None:
    """Ticks at these values and nowhere else."""
    axis.set_major_locator(FixedLocator(values))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _log_axis(axis: Axis, formatter: Formatter | None = None) -> None:
    """Ticks of a log scale, once the data are drawn: at 1, 2 and 5 of each decade, or at 1 alone of many decades."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 500 * low else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(formatter or FuncFormatter(lambda value, _: f"{value:g}"))


def legend_below(figure: Figure, handles: Sequence[tuple[str, Line2D]]) -> None:
    """Below the panels, in two columns where the labels are short; the figure grows by it."""
    labels = [plain(label, 44) for label, _ in handles]
    columns = 2 if max(map(len, labels)) <= 24 and len(labels) > 1 else 1
    figure.set_figheight(figure.get_figheight() + 0.22 * -(-len(labels) // columns))
    place: Any = {"loc": "outside lower left", "ncols": columns}
    legend = figure.legend([handle for _, handle in handles], [" "] * len(labels), **place)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label)  # set here, for a legend drops labels that begin with an underscore
