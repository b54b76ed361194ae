"""The plots as SVG: the same records give the same bytes, whatever the user's matplotlib settings."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from capbench.base.files import fingerprint
from capbench.evidence.records import Result
from capbench.leaderboard.columns import metric as known_metric
from capbench.leaderboard.markdown import plain
from capbench.metrics.alignment import BETAS

DEPTHS = np.array([*range(1, 11), 12, 14, 17, 20, 25, 30, 40, 50, 60, 80, 100])
DIRECTIONS = {"image_to_caption": "image to caption", "caption_to_image": "caption to image"}
_LOG_FROM = 20  # losses that span a larger ratio are drawn on a log scale
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#6B4C9A",
    "#444444",
)  # Okabe and Ito
Dashes = tuple[float, Sequence[float]] | None
_DASHES: tuple[Dashes, ...] = (None, (0.0, (4.0, 1.5)), (0.0, (1.0, 1.2)))
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "capbench",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # it comes with matplotlib, so labels are measured alike everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.8,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Line:
    """One entry of the legend: the records of a setting, one a seed."""

    label: str
    records: Sequence[Result]


def learning_curves(title: str, lines: Sequence[Line], metric: str) -> bytes:
    """Validation `metric` and training loss against epoch, as SVG: a thin line a seed, a thick one their mean.

    A dot is the snapshot that was tested. A dotted line stands at the loss of a collapsed embedding where a
    recipe has the max of hinges (`collapsed_loss`).
    """
    with _figure(title, 2) as (figure, (left, right), save):
        shown = known_metric(metric)
        _titles(left, "validation", f"{shown.name} ({shown.unit})" if shown.unit else shown.name)
        losses = [loss for line in lines for record in line.records for loss in _loss(record).values()]
        logarithmic = bool(losses) and min(losses) > 0 and max(losses) / min(losses) > _LOG_FROM
        _titles(right, "training", "mean loss of a batch" + (", log scale" if logarithmic else ""))
        if logarithmic:
            _log_axis(right)
        for axes, values_of in ((left, _validation(metric)), (right, _loss)):
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            for colour, dashes, line in _styled(lines):
                curves = [values_of(record) for record in line.records]
                _draw(axes, [curve for curve in curves if curve], colour, dashes)
        for colour, _, line in _styled(lines):
            _mark_best(left, line, metric, colour)
        levels = sorted({level for line in lines for r in line.records if (level := collapsed_loss(r)) is not None})
        for level in levels:
            right.axhline(level, color="black", linestyle=(0, (1, 2)), linewidth=1)
        entries = [Line2D([], [], color=c, linestyle=d, linewidth=1.8) for c, d, _ in _styled(lines)]
        labels = [line.label for line in lines]
        entries += [Line2D([], [], color="black", linestyle=(0, (1, 2)), linewidth=1) for _ in levels]
        labels += [f"max of hinges, collapsed: {level:g}" for level in levels]
        entries.append(Line2D([], [], color="#777777", marker="o", markersize=3.5, linestyle=""))
        labels.append("snapshot tested")
        _legend(figure, entries, labels)
        return save()


def recall_curves(
    title: str, lines: Sequence[Line], ranks: Callable[[Result], Mapping[str, np.ndarray]]
) -> bytes | None:
    """Recall at K against K in both directions, as SVG; None where no record has (0-based) ranks."""
    found = {id(record): ranks(record) for line in lines for record in line.records}
    drawn = [line for line in lines if any(name in found[id(r)] for r in line.records for name in DIRECTIONS)]
    if not drawn:
        return None
    with _figure(title, 2) as (figure, pair, save):
        for axes, (direction, name) in zip(pair, DIRECTIONS.items(), strict=True):
            _titles(axes, name, "recall at K (%)")
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100]))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set(xlabel="K, the number of items looked at (log scale)", ylim=(0, 100), xlim=(1, 100))
            for colour, dashes, line in _styled(lines):
                arrays = [found[id(r)][direction] for r in line.records if direction in found[id(r)]]
                curves = [dict(zip(DEPTHS.tolist(), recall_at(array).tolist(), strict=True)) for array in arrays]
                _draw(axes, curves, colour, dashes)
        entries = [
            Line2D([], [], color=c, linestyle=d, linewidth=1.8) for c, d, line in _styled(lines) if line in drawn
        ]
        _legend(figure, entries, [line.label for line in drawn])
        return save()


@dataclass(frozen=True)
class Sweep:
    """A metric that records have for several values of a setting: `prefix` + value is its name."""

    prefix: str
    setting: str
    metric: str
    values: tuple[float, ...]
    name: str  # of its pictures

    def of(self, record: Result) -> dict[int, float]:
        """The metric by place among the values, which are drawn at equal distances."""
        names = [f"{self.prefix}{value:g}" for value in self.values]
        return {place: record.metrics[name] for place, name in enumerate(names) if name in record.metrics}


SWEEPS = (
    Sweep("bleu4_beam", "width of the beam", "BLEU-4", (*map(float, range(1, 10)), 20.0), "beams"),
    Sweep("snippet_f1_beta", "affinity of neighbouring words", "F1 of snippets (%)", BETAS, "affinity"),
)


def sweep_curves(title: str, lines: Sequence[Line], sweep: Sweep) -> bytes | None:
    """A metric against a setting, as SVG; None where no record was scored with several values of it."""
    curves = {id(record): sweep.of(record) for line in lines for record in line.records}
    drawn = [line for line in lines if any(len(curves[id(record)]) > 1 for record in line.records)]
    if not drawn:
        return None
    with _figure(title, 1) as (figure, (axes,), save):
        _titles(axes, "test", sweep.metric)
        axes.set_xlabel(sweep.setting)
        axes.set_xticks(range(len(sweep.values)), [f"{value:g}" for value in sweep.values])
        styled = list(_styled(drawn))
        for colour, dashes, line in styled:
            _draw(axes, [curves[id(record)] for record in line.records], colour, dashes)
        entries = [Line2D([], [], color=colour, linestyle=dashes, linewidth=1.8) for colour, dashes, _ in styled]
        _legend(figure, entries, [line.label for line in drawn])
        return save()


def heat_map(title: str, columns: Sequence[str], rows: Sequence[str], cells: Mapping[tuple[str, str], float]) -> bytes:
    """A number for each (row, column), as SVG; the darker the higher. A cell that is missing stays white."""
    with _figure(title, 1) as (_, (axes,), save):
        values = np.array([[cells.get((row, column), np.nan) for column in columns] for row in rows])
        axes.imshow(values, cmap="Blues", aspect="auto", vmin=0.8 * np.nanmin(values), vmax=1.1 * np.nanmax(values))
        axes.set_xticks(range(len(columns)), [plain(name, 24) for name in columns])
        axes.set_yticks(range(len(rows)), [plain(name, 24) for name in rows])
        axes.grid(visible=False)
        for y, row in enumerate(rows):
            for x, column in enumerate(columns):
                if (row, column) in cells:
                    axes.text(x, y, f"{cells[row, column]:.1f}", ha="center", va="center")
        return save()


@dataclass(frozen=True)
class Point:
    """One timed variant: FLOP a byte, TFLOP/s; `ours` is drawn full, a rival hollow."""

    label: str
    intensity: float
    rate: float
    ours: bool


def roofline(title: str, copy: float, product: Mapping[str, float], points: Sequence[Point]) -> bytes:
    """TFLOP/s against FLOP a byte below the measured ceilings (`copy` GB/s, `product` TFLOP/s by type), as SVG."""
    with _figure(title, 1) as (figure, (axes,), save):
        _titles(axes, "full: ours, hollow: the strongest rival", "TFLOP/s (log scale)")
        axes.set_xlabel("FLOP for each byte that must be read or written (log scale)")
        _both_log(axes)
        knees = [1e3 * rate / copy for rate in product.values()]
        ends = np.array([*(point.intensity for point in points), *knees])
        span = np.geomspace(ends.min() / 2, ends.max() * 2, 200)
        entries, labels = [], []
        for (dtype, rate), dashes in zip(sorted(product.items()), _DASHES * len(product), strict=False):
            (line,) = axes.plot(span, np.minimum(span * copy / 1e3, rate), color="black", linestyle=dashes, linewidth=1)
            entries.append(line)
            labels.append(f"ceiling, {dtype}: {rate:.3g} TFLOP/s, {copy:.3g} GB/s")
        colours = {label: _COLOURS[n % len(_COLOURS)] for n, label in enumerate(dict.fromkeys(p.label for p in points))}
        for point in points:
            face = colours[point.label] if point.ours else "none"
            axes.plot(point.intensity, point.rate, "o", markersize=5, color=colours[point.label], markerfacecolor=face)
        entries += [Line2D([], [], color=colour, marker="o", markersize=5, linestyle="") for colour in colours.values()]
        _legend(figure, entries, [*labels, *colours])
        return save()


@dataclass(frozen=True)
class Series:
    """One variant over several sizes: pairs of image and caption -> seconds, and -> bytes."""

    label: str
    seconds: Mapping[int, float]
    peak: Mapping[int, int]


def scaling(title: str, series: Sequence[Series]) -> bytes:
    """Time and peak memory against the number of pairs, all on log scales, as SVG."""
    with _figure(title, 2) as (figure, (left, right), save):
        _titles(left, "time", "seconds (log scale)")
        _titles(right, "peak memory", "MB beyond the inputs (log scale)")
        for axes in (left, right):
            axes.set_xlabel("images x captions (log scale)")
            _both_log(axes)
        entries = []
        for place, one in enumerate(series):
            style: Any = {"color": _COLOURS[place % len(_COLOURS)], "linestyle": _DASHES[place // len(_COLOURS) % 3]}
            left.plot(list(one.seconds), list(one.seconds.values()), marker="o", markersize=3, **style)
            right.plot(list(one.peak), [size / 1e6 for size in one.peak.values()], marker="o", markersize=3, **style)
            entries.append(Line2D([], [], linewidth=1.8, **style))
        _legend(figure, entries, [one.label for one in series])
        return save()


def slug(*words: str) -> str:
    """A file name; one that had to be changed carries a hash, so that no two settings share it."""
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
    training = record.recipe.get("training")
    size = training.get("batch_size") if isinstance(training, dict) else None
    margin = record.recipe.get("margin")
    if record.recipe.get("loss") != "max_of_hinges":
        return None
    if not isinstance(margin, int | float) or not isinstance(size, int | float):
        return None
    return round(2.0 * margin * size, 6)


@contextmanager
def _figure(title: str, panels: int) -> Iterator[tuple[Figure, Sequence[Axes], Callable[[], bytes]]]:
    """A figure under our style alone; the function that comes with it gives its SVG."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(10.2, 3.5), layout="constrained")
        figure.suptitle(plain(title, 120), x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        axes = figure.subplots(1, panels, squeeze=False)[0]

        def save() -> bytes:
            buffer = io.BytesIO()
            about = {"Title": plain(title, 120), "Creator": "capbench leaderboard", "Date": None}
            figure.savefig(buffer, format="svg", metadata=about)
            return buffer.getvalue()

        yield figure, list(axes), save


def _styled(lines: Sequence[Line]) -> Iterator[tuple[str, Dashes, Line]]:
    for place, line in enumerate(lines):
        yield _COLOURS[place % len(_COLOURS)], _DASHES[place // len(_COLOURS) % len(_DASHES)], line


def _draw(
    axes: Axes,
    curves: Sequence[Mapping[int, float]],
    colour: str,
    dashes: Dashes,
) -> None:
    """Thin lines, and their mean as far as all of them go."""
    for curve in curves:
        if len(curves) > 1:
            axes.plot(list(curve), list(curve.values()), color=colour, linestyle=dashes, linewidth=0.6, alpha=0.5)
    shared = [step for step in (curves[0] if curves else ()) if all(step in curve for curve in curves)]
    means = [sum(curve[step] for curve in curves) / len(curves) for step in shared]
    lone: Any = {"marker": "o", "markersize": 3} if len(shared) == 1 else {}
    axes.plot(shared, means, color=colour, linestyle=dashes, linewidth=1.8, **lone)


def _mark_best(axes: Axes, line: Line, metric: str, colour: str) -> None:
    for record in line.records:
        curve = _validation(metric)(record)
        if record.best_epoch + 1 in curve:
            axes.plot([record.best_epoch + 1], [curve[record.best_epoch + 1]], "o", color=colour, markersize=3.5)


def _validation(metric: str) -> Callable[[Result], dict[int, float]]:
    """By epoch, the first being 1."""
    return lambda record: {e.epoch + 1: e.validation[metric] for e in record.curve if metric in e.validation}


def _loss(record: Result) -> dict[int, float]:
    return {epoch.epoch + 1: epoch.loss for epoch in record.curve if epoch.loss is not None}


def _titles(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title, loc="left")
    axes.set_ylabel(label)


def _log_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _both_log(axes: Axes) -> None:
    """Powers of ten on both axes, written plainly."""
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, entries: Sequence[Line2D], labels: Sequence[str]) -> None:
    legend = figure.legend(entries, [" "] * len(entries), loc="outside right upper", fontsize=8.5)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(plain(label, 44))  # set here, for a legend drops labels that begin with an underscore
