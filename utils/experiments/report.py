"""A report of many runs: report.html, one self-contained page; table.csv, .md and .tex; plots as PNG and PDF."""

from __future__ import annotations

import csv
import glob
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from pruning.errors import UsageError
from utils.experiments import report_plots
from utils.experiments.cell import DENSE, WHEREABOUTS
from utils.experiments.cells import Cells
from utils.experiments.plan_file import RUNNERS
from utils.experiments.report_data import (
    AXES,
    Data,
    Finished,
    Interval,
    Wanted,
    costs,
    differences,
    potentials,
    summary,
)
from utils.files import write_atomic
from utils.runs.run_folder import RunFolder

TEMPLATE = Path(__file__).with_name("report.html")

# Settings that two runs of one method may differ in.
TELLING = ("model", "data_set", "prune_criterion", "pruning_limit", "seed")

NO_METHOD = {*WHEREABOUTS, *RUNNERS, *TELLING, "checkpoint_name"}


@dataclass(frozen=True)
class Entry:
    """A cell of a table: what is shown, and what it is sorted by."""

    text: str
    key: float | str


@dataclass(frozen=True)
class Table:
    """A table of a report; the first `texts` columns hold words."""

    title: str
    note: str
    columns: list[str]
    rows: list[list[Entry]]
    texts: int


# -- what there is -----------------------------------------------------------------------------------------------------


def gather(cells: Cells) -> Data:
    """Returns the finished and the failed runs of an experiment."""
    plan = cells.experiment
    data = Data(plan.name, [], plan.wanted)
    for cell in plan.cells:
        record, folder, error = cells.record(cell), cells.run_of(cell), cells.error(cell)
        if record is not None and folder is not None:
            layers, seconds = _layers(folder), cells.seconds(cell)
            what = (cell.method, cell.group, cell.limit, cell.seed)
            data.runs.append(Finished(*what, record, folder.path, layers, seconds))
        elif error:
            data.lost.append((cell.title, error, folder.path if folder else None))
        elif cells.state(cell) == "interrupted":
            data.interrupted += 1
        else:
            data.open += 1
    data.note = _note(data)
    return data


def gather_runs(pattern: str, results: Path) -> Data:
    """Returns the runs whose folders, or the folders around them, match a pattern.

    A method is a criterion with whatever settings tell its runs apart from others of it; models and data sets make
    groups of their own.

    Raises:
        UsageError: if there are none.
    """
    matches = glob.glob(str(results / pattern)) or glob.glob(os.path.expanduser(pattern))
    files = {file for path in map(Path, matches) for file in sorted(path.rglob("result.json"))}
    folders = [RunFolder(file.parent) for file in sorted(files) if (file.parent / "settings.yaml").is_file()]
    found, damaged = [], []
    for folder in folders:
        settings: dict[str, Any] = {}
        with suppress(UsageError):  # one damaged run must not keep the others from being shown
            settings = folder.settings()
        if not {*TELLING} <= settings.keys():
            damaged.append((folder.path.name, f"{folder.settings_file} is damaged", folder.path))
        elif not settings.get("eval"):
            found.append((folder, settings, folder.result()))
    if not found:
        raise UsageError(f"--report {pattern}: no run folder matches, in {results} or here.")
    data = Data(f"runs {pattern}", [], Wanted(), list(damaged))
    groups = _varying([settings for _, settings, _ in found], only=("model", "data_set"))
    runs: dict[tuple[Any, ...], Finished] = {}
    for folder, settings, record in found:
        same = [other for _, other, _ in found if other["prune_criterion"] == settings["prune_criterion"]]
        told = ", ".join(f"{name} {settings.get(name)}" for name in _varying(same))
        label = settings["prune_criterion"] + (f" ({told})" if told else "")
        method = "" if settings["prune_criterion"] == DENSE else label
        group = ", ".join(str(settings[name]) for name in groups)
        what = (method, group, float(settings["pruning_limit"]) if method else 0.0, int(settings["seed"]))
        if record.get("status") == "finished":
            runs[what] = Finished(*what, record, folder.path, _layers(folder))  # the newest of equals
        elif record.get("status") == "failed":
            data.lost.append((folder.path.name, f"see {folder.output / 'log.txt'}", folder.path))
        elif record.get("status") == "interrupted":
            data.interrupted += 1
        else:
            data.lost.append((folder.path.name, f"{folder.result_file} is damaged", folder.path))
    data.runs = list(runs.values())
    data.note = _note(data)
    if differing := _varying([settings for _, settings, _ in found if settings["prune_criterion"] == DENSE]):
        data.note += f" Dense runs differ in {', '.join(differing)}: all are compared with the newest of each seed."
    return data


def _varying(settings: Sequence[Mapping[str, Any]], only: Sequence[str] = ()) -> list[str]:
    names = only or [name for name in dict.fromkeys(name for one in settings for name in one) if name not in NO_METHOD]
    return [name for name in names if any(one.get(name) != settings[0].get(name) for one in settings)]


def _layers(folder: RunFolder) -> dict[str, float]:
    """Sparsity by layer after the last pruning event."""
    with suppress(OSError, ValueError, KeyError, IndexError, TypeError):
        events = json.loads((folder.output / "pruning_events.json").read_text(encoding="utf-8"))
        return dict(events[-1]["sparsities"])
    return {}


def _note(data: Data) -> str:
    seeds = len({run.seed for run in data.runs})
    counts = [f"{len(data.runs)} finished", *([f"{len(data.lost)} failed"] if data.lost else [])]
    counts += [f"{data.interrupted} interrupted"] if data.interrupted else []
    counts += [f"{data.open} still to come"] if data.open else []
    single = " A single seed: there are no intervals." if seeds == 1 else ""
    return f"Runs: {', '.join(counts)}; {seeds} seed{'s' * (seeds != 1)}.{single}"


# -- what is written ---------------------------------------------------------------------------------------------------


def write(data: Data, folder: Path, *, plots: bool = True) -> Path:
    """Writes the page and the tables, and the plots as files of their own; returns the folder.

    Args:
        data: what to show.
        folder: where to; made if needed.
        plots: whether to write PNG and PDF too, which takes longer than all the rest.
    """
    for directory in (folder, folder / "plots"):
        directory.mkdir(parents=True, exist_ok=True)

    def link(path: Path) -> str:
        return Path(os.path.relpath(path, folder)).as_posix() + "/"

    pictures: dict[str, list[str]] = {"curves": [], "layers": []}
    for number, group in enumerate(data.groups()):
        end = f"_{number + 1}" if len(data.groups()) > 1 else ""
        drawn = {f"{y}_{x}{end}": (group, x, y) for y in data.wanted.y for x in data.wanted.x}
        figures = {name: report_plots.curves(data, *what, lambda run: link(run.folder)) for name, what in drawn.items()}
        by_layer = report_plots.layers(data, group)
        kinds = [("curves", name, figure) for name, figure in figures.items()]
        kinds += [("layers", f"layers{end}", by_layer)] if by_layer else []
        for kind, name, figure in kinds:
            pictures[kind].append(report_plots.as_svg(figure, name.replace("_", " ")))
            if plots:
                report_plots.save(figure, folder / "plots", name)
    tables = make_tables(data)
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(data=data, tables=tables, link=link, **pictures)
    write_atomic(folder / "report.html", page)
    write_atomic(folder / "table.csv", _as_csv(summary(data)))
    write_atomic(folder / "table.md", "\n".join(map(_as_markdown, tables)))
    write_atomic(folder / "table.tex", "\n".join(map(_as_tex, tables)))
    return folder


def make_tables(data: Data) -> list[Table]:
    """Returns the tables of the page."""
    several = len(data.groups()) > 1
    tables = [_summary_table(data, several), _potential_table(data, several), _difference_table(data, several)]
    tables.append(_cost_table(data, several))
    return [table for table in tables if table.rows]


def _summary_table(data: Data, several: bool) -> Table:
    columns = ["method", "limit", "n", *(AXES[x] for x in data.wanted.x)]
    columns += [heading for y in data.wanted.y for heading in (AXES[y], f"{AXES[y]} minus dense")]
    rows = []
    for row in summary(data):
        entries = [Entry(row["method"], row["method"]), _number(row["limit"], "g"), _number(row["n"])]
        entries += [_number(row[x]) for x in data.wanted.x]
        for y in data.wanted.y:
            for name in (y, f"{y}_minus_dense"):
                change = name != y
                if change and row["method"] == "dense":
                    entries.append(Entry("", math.inf))
                    continue
                entries.append(_mean(Interval(row[name], row[f"{name}_low"], row[f"{name}_high"], row["n"]), change))
        rows.append(_grouped(row, entries, several))
    note = "Means over seeds, with 95 % intervals where at least two seeds differ."
    return Table("Results", note, _heads(columns, several), rows, 1 + several)


def _potential_table(data: Data, several: bool) -> Table:
    note = "The largest fraction of weights removed at which the test accuracy stays within a tolerance of the dense "
    note += "network of the same seed: mean over seeds with a 95 % interval; 0 where no run is."
    found = potentials(data)
    names = [name for name in found[0] if name.startswith("within")] if found else []
    rows = [
        _grouped(row, [Entry(row["method"], row["method"]), *(_mean(row[name]) for name in names)], several)
        for row in found
    ]
    return Table("Prune potential", note, _heads(["method", *names], several), rows, 1 + several)


def _difference_table(data: Data, several: bool) -> Table:
    note = "Differences of test accuracy between two methods, seed by seed, with 95 % intervals. A method is named as "
    note += "ahead only where the interval leaves zero out even when widened for the number of pairs at that limit. "
    note += "Differences that are the same for all seeds, or of one seed, have no interval: more seeds would tell."
    rows = []
    for row in differences(data):
        entries = [Entry(row["one"], row["one"]), Entry(row["other"], row["other"]), Entry(row["ahead"], row["ahead"])]
        entries += [_number(row["limit"], "g"), _mean(row["difference"], True), _number(row["difference"].n)]
        rows.append(_grouped(row, entries, several))
    columns = ["one", "other", "ahead", "limit", "one minus other", "pairs"]
    return Table("Paired differences", note, _heads(columns, several), rows, 3 + several)


def _cost_table(data: Data, several: bool) -> Table:
    columns = ["method", "runs", "training time, s", "whole run, s", "samples/s", "training FLOPs", "memory, MB"]
    rows = []
    for row in costs(data):
        entries = [Entry(row["method"], row["method"]), _number(row["runs"]), _number(row["seconds_training"], ".1f")]
        entries += [_number(row["seconds_in_all"], ".1f"), _number(row["samples_per_second"], ",.0f")]
        entries += [_number(row["training_flops"], ".3g"), _number(row["peak_memory_bytes"] / 1e6, ",.0f")]
        rows.append(_grouped(row, entries, several))
    note = "Means over the runs of a method; memory is the most that the process (or the GPU) held."
    return Table("Time and memory", note, _heads(columns, several), rows, 1 + several)


def _heads(columns: list[str], several: bool) -> list[str]:
    return ["of", *columns] if several else columns


def _grouped(row: Mapping[str, Any], entries: list[Entry], several: bool) -> list[Entry]:
    return [Entry(row["group"], row["group"]), *entries] if several else entries


def _number(value: float, form: str = "") -> Entry:
    if math.isnan(value):
        return Entry("–", math.inf)
    form = form or (",.0f" if float(value).is_integer() and value else ".4f" if abs(value) < 10 else ",.0f")
    return Entry(format(value, form), value)


def _mean(found: Interval, change: bool = False) -> Entry:
    if math.isnan(found.mean):
        return Entry("–", math.inf)
    sign = "+" if change else ""
    ends = "" if math.isnan(found.low) else f" [{found.low:{sign}.4f}, {found.high:{sign}.4f}]"
    return Entry(f"{found.mean:{sign}.4f}{ends}", found.mean)


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["method"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: "" if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
        for row in rows
    )
    return text.getvalue()


def _as_markdown(table: Table) -> str:
    lines = [table.columns, ["---"] * table.texts + ["---:"] * (len(table.columns) - table.texts)]
    lines += [[entry.text.replace("|", "\\|") for entry in row] for row in table.rows]
    return f"## {table.title}\n\n{table.note}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _as_tex(table: Table) -> str:
    form = "l" * table.texts + "r" * (len(table.columns) - table.texts)
    lines = [table.columns, *([entry.text for entry in row] for row in table.rows)]
    body = [" & ".join(map(_tex, line)) + r" \\" for line in lines]
    rules = [rf"\begin{{tabular}}{{{form}}}", r"\hline", body[0], r"\hline", *body[1:], r"\hline", r"\end{tabular}"]
    return f"% {table.title}: {table.note}\n" + "\n".join(rules) + "\n"


def _tex(text: str) -> str:
    text = text.replace("\\", r"\textbackslash ").replace("–", "--")
    for letter in "&%$#_{}":
        text = text.replace(letter, f"\\{letter}")
    return text
