"""The pictures of a report, one curve or bundle of curves each; drawn once, saved as SVG, PNG and PDF."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pruning.measure.measures import kind_of
from utils.callbacks.pictures import new_figure
from utils.experiments.report.data import Data, Finished, Interval, layer_sparsities, mean_of
from utils.experiments.wanted import axis_words
from utils.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter


# Readable on white and on black, and told apart by those who see few colours; marks differ as well.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#c98500", "#3fa0d8", "#8a6fd1", "#8c6d4f", "#7f8c1d", "#8a8a8a"]

MARKS = "osD^vPX<>*"

INK = "#1f2329"  # of axes and text; in a page it becomes that of the page's text

FRACTIONS = ("weight_sparsity", "node_sparsity", "sparsity_reached", "effective_weight_sparsity")

TICKS = [0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999]

Link = Callable[[Finished], str]


def curves(data: Data, group: str, x: str, y: str, link: Link) -> Figure:
    """Draws y against x: per method the mean over seeds with its 95 % band, each run as a dot, dense as a line.

    Args:
        data: the runs.
        group: of which.
        x, y: fields of result.json.
        link: where a run's dot leads to.
    """
    figure, axes = _framed()
    for number, method in enumerate(data.methods(group)):
        runs = data.at(group, method, None)
        _draw_runs(axes, runs, (x, y), number, link)
        by_limit = [data.at(group, method, limit) for limit in data.limits(group, method)]
        _draw_means(axes, method, by_limit, (x, y), number)
    _draw_dense(axes, mean_of(data.dense(group), y))
    shown = [run.value(x) for run in data.runs if run.group == group and run.method]
    _scale(axes, x, shown)
    axes.set(xlabel=axis_words(x), ylabel=axis_words(y), title=_plain(group) or None)
    if kind_of(y.partition("_")[2]).fraction:  # bands may leave what is possible
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.02), min(high, 1.02))
    _legend(figure, axes)
    return figure


def _draw_runs(axes: Axes, runs: Sequence[Finished], fields: tuple[str, str], number: int, link: Link) -> None:
    x, y = fields
    places = [run.value(x) for run in runs]
    values = [run.value(y) for run in runs]
    dots = axes.scatter(places, values, s=9, color=colour_of(number), alpha=0.55)
    dots.set_urls([link(run) for run in runs])


def _draw_means(
    axes: Axes, method: str, by_limit: Sequence[Sequence[Finished]], fields: tuple[str, str], number: int
) -> None:
    x, y = fields
    points = [(mean_of(runs, x).mean, mean_of(runs, y)) for runs in by_limit]
    # A larger limit may well have reached less: the line goes from left to right.
    points.sort(key=lambda point: point[0])
    places = [place for place, _ in points]
    means = [found.mean for _, found in points]
    low = [found.low for _, found in points]
    high = [found.high for _, found in points]
    (line,) = axes.plot(places, means, line_style(number), label=_plain(method))
    line.set(color=colour_of(number), marker=mark_of(number), markersize=4)
    axes.fill_between(places, low, high, color=colour_of(number), alpha=0.16, linewidth=0)


def _draw_dense(axes: Axes, dense: Interval) -> None:
    if not dense.n:
        return
    axes.axhline(dense.mean, color=INK, linewidth=1.2, linestyle="--", label="dense")
    if not math.isnan(dense.low):
        axes.axhspan(dense.low, dense.high, color=INK, alpha=0.1, linewidth=0)


def layers(data: Data, group: str) -> Figure | None:
    """Draws the sparsity of each layer per method, at the limit that most methods share; None without any."""
    limit, found = layer_sparsities(data, group)
    if not found:
        return None
    # In the order of the first method that has them.
    names = list(dict.fromkeys(name for by_layer in found.values() for name in by_layer))
    everything: list[float] = []
    figure, axes = _framed()
    for number, (method, by_layer) in enumerate(found.items()):
        values = [by_layer.get(name, math.nan) for name in names]
        everything += by_layer.values()
        (line,) = axes.plot(range(len(names)), values, line_style(number), label=_plain(method))
        line.set(color=colour_of(number), marker=mark_of(number), markersize=4)
    _name_layers(axes, names)
    title = f"limit {limit:g}, {group}" if group else f"limit {limit:g}"
    axes.set(ylabel="fraction of weights removed", title=_plain(title), ylim=(-0.03, 1.03))
    if max(everything) >= 0.9:
        _spread(axes, "y", everything)
    _legend(figure, axes)
    return figure


def _name_layers(axes: Axes, names: Sequence[str]) -> None:
    every = max(1, math.ceil(len(names) / 12))  # more names would lie on each other
    places = range(0, len(names), every)
    shown = [names[place].removesuffix(".weight")[-18:] for place in places]
    axes.set_xticks(places, shown, rotation=40, ha="right", fontsize=8)


def _plain(text: str) -> str:
    """Returns a name of the user's that is drawn letter by letter: `$` is no formula, `_` in front does not hide it.

    One that would leave the picture loses its middle.
    """
    if len(text) >= 60:
        text = f"{text[:35]}…{text[-23:]}"
    if text.startswith("_"):
        text = " " + text
    return text.replace("$", r"\$")


def colour_of(number: int) -> str:
    """Returns the colour of the so-manieth line."""
    return COLOURS[number % len(COLOURS)]


def mark_of(number: int) -> str:
    """Returns the mark of the so-manieth line."""
    return MARKS[number % len(MARKS)]


def line_style(number: int) -> str:
    """Colours come again with the eleventh line, which is dotted."""
    return "-" if number < len(COLOURS) else ":"


def _framed() -> tuple[Figure, Axes]:
    figure = new_figure(5.2, 3.7)
    axes = figure.subplots()
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color=INK, alpha=0.12, linewidth=0.7)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set(color=INK, fontsize=10)
    return figure, axes


def _legend(figure: Figure, axes: Axes) -> None:
    """Puts the legend below the axes; the picture grows by its height."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max((len(label) for label in labels), default=0)
    columns = 1 if longest > 26 else 2  # two long names would leave the picture
    rows = math.ceil(len(labels) / columns)
    height = figure.get_figheight() + 0.2 * rows
    figure.set_figheight(height)
    # Inches, from which matplotlib wants fractions of the whole.
    above = 0.35 if axes.get_title() else 0.15
    is_slanted = any(label.get_rotation() for label in axes.get_xticklabels())
    below = 0.65 + (0.5 if is_slanted else 0.0) + 0.2 * rows
    figure.subplots_adjust(left=0.15, right=0.97, top=1 - above / height, bottom=below / height)
    legend = figure.legend(handles, labels, loc="lower center", ncols=columns, fontsize=9, frameon=False)
    for text in legend.get_texts():
        text.set_color(INK)


def _scale(axes: Axes, x: str, values: list[float]) -> None:
    """Fractions close to 1 are spread out by what is left; costs over more than a power of ten go on a log axis."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return
    low, high = min(values), max(values)
    if x in FRACTIONS:
        if high >= 0.9:
            _spread(axes, "x", values)
    elif low > 0 and high > 10 * low:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_formatter(_engineering())


def _spread(axes: Axes, which: str, values: list[float]) -> None:
    """Lets an axis of fractions removed go with the logarithm of what is left: 0.9 to 0.99 is as long as 0 to 0.9."""
    rest = min(1 - min(max(values), 0.9999), 0.1)
    ends = max(0.0, min(values) - 0.05), 1 - rest * 0.8

    def forward(values: np.ndarray) -> np.ndarray:
        return -np.log(1 - np.minimum(values, 1 - rest / 3))

    def back(values: np.ndarray) -> np.ndarray:
        return 1 - np.exp(-np.asarray(values))

    getattr(axes, f"set_{which}scale")("function", functions=(forward, back))
    getattr(axes, f"set_{which}lim")(*ends)
    ticks = [tick for tick in TICKS if ends[0] <= tick <= ends[1]]
    getattr(axes, f"set_{which}ticks")(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _engineering() -> Formatter:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")


def as_svg(figure: Figure, name: str) -> str:
    """Returns a figure as an <svg> element whose ink is that of the page around it."""
    import matplotlib

    buffer = io.StringIO()
    # Text stays text: smaller, sharp, and in the page's font. The salt keeps ids of several pictures apart.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'width="[^"]*pt" height="[^"]*pt"', f'role="img" aria-label="{name}"', text, count=1)
    return re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)


def save(figure: Figure, folder: Path, name: str) -> None:
    """Writes a figure as PNG and PDF."""
    for kind in ("png", "pdf"):
        # Without the hour, the same runs make the same file.
        metadata = {"CreationDate": None} if kind == "pdf" else None
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
        write_atomic(folder / f"{name}.{kind}", buffer.getvalue())
