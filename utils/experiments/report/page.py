"""A report of many runs: report.html, one self-contained page; table.csv, .md and .tex; plots as PNG and PDF."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from utils.experiments.report.data import Data, Finished, summary
from utils.experiments.report.plots import as_svg, curves, layers, save
from utils.experiments.report.tables import as_csv, as_markdown, as_tex, make_tables
from utils.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("report.html")


def write(data: Data, folder: Path, *, plots: bool = True) -> Path:
    """Writes the page and the tables, and the plots as files of their own; returns the folder.

    Args:
        data: what to show.
        folder: where to; made if needed.
        plots: whether to write PNG and PDF too, which takes longer than all the rest.
    """
    for directory in (folder, folder / "plots"):
        directory.mkdir(parents=True, exist_ok=True)
    link = partial(_link, folder)
    pictures: dict[str, list[str]] = {"curves": [], "layers": []}
    for kind, name, figure in _figures(data, lambda run: link(run.folder)):
        pictures[kind].append(as_svg(figure, name.replace("_", " ")))
        if plots:
            save(figure, folder / "plots", name)
    tables = make_tables(data)
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(data=data, tables=tables, link=link, **pictures)
    write_atomic(folder / "report.html", page)
    write_atomic(folder / "table.csv", as_csv(summary(data)))
    write_atomic(folder / "table.md", "\n".join(as_markdown(table) for table in tables))
    write_atomic(folder / "table.tex", "\n".join(as_tex(table) for table in tables))
    return folder


def _link(folder: Path, path: Path) -> str:
    """Returns a folder as a page in another one points to it."""
    return Path(os.path.relpath(path, folder)).as_posix() + "/"


def _figures(data: Data, link: Callable[[Finished], str]) -> Iterator[tuple[str, str, Figure]]:
    """Yields ("curves" or "layers", the name of its files, the figure), one at a time: each takes megabytes."""
    groups = data.groups()
    for number, group in enumerate(groups, start=1):
        end = f"_{number}" if len(groups) > 1 else ""
        for y in data.shown():
            for x in data.wanted.x:
                yield "curves", f"{y}_{x}{end}", curves(data, group, x, y, link)
        by_layer = layers(data, group)
        if by_layer is not None:
            yield "layers", f"layers{end}", by_layer
