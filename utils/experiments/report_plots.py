"""The pictures of a report, one curve or bundle of curves each; drawn once, saved as SVG, PNG and PDF."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.callbacks.pictures import new_figure
from utils.experiments.report_data import AXES, Data, Finished, interval, layer_sparsities
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
    """Draws y against x: per method the mean over seeds with its 95 % band, each run as a dot, dense as a line."""
    methods = data.methods(group)
    figure, axes = _framed()
    for number, method in enumerate(methods):
        _method(axes, data, (group, method, x, y), number, link)
    dense = interval([run.value(y) for run in data.dense(group)])
    if dense.n:
        axes.axhline(dense.mean, color=INK, linewidth=1.2, linestyle="--", label="dense")
        if not math.isnan(dense.low):
            axes.axhspan(dense.low, dense.high, color=INK, alpha=0.1, linewidth=0)
    _scale(axes, x, [run.value(x) for run in data.runs if run.group == group and run.method])
    axes.set(xlabel=AXES[x], ylabel=AXES[y], title=_plain(group) or None)
    low, high = axes.get_ylim()
    if y.endswith("_accuracy"):  # bands may leave what is possible
        axes.set_ylim(max(low, -0.02), min(high, 1.02))
    _legend(figure, axes)
    return figure


def _method(axes: Axes, data: Data, what: tuple[str, str, str, str], number: int, link: Link) -> None:
    group, method, x, y = what
    colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
    runs = data.at(group, method, None)
    dots = axes.scatter([run.value(x) for run in runs], [run.value(y) for run in runs], s=9, color=colour, alpha=0.55)
    dots.set_urls([link(run) for run in runs])
    means = []
    for limit in data.limits(group, method):
        there = data.at(group, method, limit)
        means.append((interval([r.value(x) for r in there]).mean, interval([r.value(y) for r in there])))
    means.sort(key=lambda pair: pair[0])
    places = [place for place, _ in means]
    values = [m.mean for _, m in means]
    axes.plot(places, values, line_style(number), marker=mark, markersize=4, color=colour, label=_plain(method))
    low, high = [m.low for _, m in means], [m.high for _, m in means]
    axes.fill_between(places, low, high, color=colour, alpha=0.16, linewidth=0)


def layers(data: Data, group: str) -> Figure | None:
    """Draws the sparsity of each layer per method, at the limit that most methods share; None without any."""
    limit, found = layer_sparsities(data, group)
    if not found:
        return None
    names = list(dict.fromkeys(name for by_layer in found.values() for name in by_layer))
    figure, axes = _framed()
    for number, (method, by_layer) in enumerate(found.items()):
        values = [by_layer.get(name, math.nan) for name in names]
        colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
        line = axes.plot(range(len(names)), values, line_style(number), label=_plain(method))[0]
        line.set(color=colour, marker=mark, markersize=4)
    every = max(1, math.ceil(len(names) / 12))
    shown = [name.removesuffix(".weight")[-18:] for name in names[::every]]
    axes.set_xticks(range(0, len(names), every), shown, rotation=40, ha="right", fontsize=8)
    asked = f"limit {limit:g}" + (f", {group}" if group else "")
    axes.set(ylabel="fraction of weights removed", title=_plain(asked), ylim=(-0.03, 1.03))
    everything = [value for by_layer in found.values() for value in by_layer.values()]
    if max(everything) >= 0.9:
        _spread(axes, "y", everything)
    _legend(figure, axes)
    return figure


def _plain(text: str) -> str:
    """Returns a name of the user's that is drawn letter by letter: `$` is no formula, `_` in front does not hide it.

    One that would leave the picture loses its middle.
    """
    text = text if len(text) < 60 else f"{text[:35]}…{text[-23:]}"
    return (" " * text.startswith("_") + text).replace("$", r"\$")


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
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, labels), default=0) > 26 else 2  # two long names would leave the picture
    rows = math.ceil(len(labels) / columns)
    height = figure.get_figheight() + 0.2 * rows
    figure.set_figheight(height)
    slanted = 0.5 if any(label.get_rotation() for label in axes.get_xticklabels()) else 0.0
    top = 1 - (0.35 if axes.get_title() else 0.15) / height
    figure.subplots_adjust(left=0.15, right=0.97, top=top, bottom=(0.65 + slanted + 0.2 * rows) / height)
    legend = figure.legend(handles, labels, loc="lower center", ncols=columns, fontsize=9, frameon=False)
    for text in legend.get_texts():
        text.set_color(INK)


def _scale(axes: Axes, x: str, values: list[float]) -> None:
    """Fractions close to 1 are spread out by what is left; costs over more than a power of ten go on a log axis."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return
    if x not in FRACTIONS:
        if min(values) > 0 and max(values) > 10 * min(values):
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_formatter(_engineering())
    elif max(values) >= 0.9:
        _spread(axes, "x", values)


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
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=150, metadata={"CreationDate": None} if kind == "pdf" else None)
        write_atomic(folder / f"{name}.{kind}", buffer.getvalue())
