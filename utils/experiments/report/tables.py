"""The tables of a report, and how they are written as CSV, Markdown and TeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.experiments.report.data import Data, Interval, costs, differences, is_absolute, potentials, summary
from utils.experiments.wanted import axis_words


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


def make_tables(data: Data) -> list[Table]:
    """Returns the tables of the page; one without rows is left out."""
    several = len(data.groups()) > 1
    tables = [
        _summary_table(data, several),
        _potential_table(data, several),
        _difference_table(data, several),
        _cost_table(data, several),
    ]
    return [table for table in tables if table.rows]


def _summary_table(data: Data, several: bool) -> Table:
    columns = ["method", "limit", "n"]
    columns += [axis_words(x) for x in data.wanted.x]
    for y in data.shown():
        columns += [axis_words(y), f"{axis_words(y)} minus dense"]
    rows = []
    for row in summary(data):
        entries = [_text(row["method"]), _number(row["limit"], "g"), _number(row["n"])]
        entries += [_number(row[x]) for x in data.wanted.x]
        for y in data.shown():
            entries.append(_mean(_interval_of(row, y)))
            if row["method"] == "dense":  # which is not compared with itself
                entries.append(Entry("", math.inf))
            else:
                entries.append(_mean(_interval_of(row, f"{y}_minus_dense"), change=True))
        rows.append(_grouped(row, entries, several))
    note = "Means over seeds, with 95 % intervals where at least two seeds differ."
    return Table("Results", note, _heads(columns, several), rows, 1 + several)


def _interval_of(row: Mapping[str, Any], name: str) -> Interval:
    return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"], row["n"])


def _potential_table(data: Data, several: bool) -> Table:
    name, _ = data.main()
    tolerance = "a tolerance" if is_absolute(name) else "a tolerance, a share of it,"
    note = (
        f"The largest fraction of weights removed at which the {axis_words(name)} stays within {tolerance} of the "
        "dense network of the same seed: mean over seeds with a 95 % interval; 0 where no run is."
    )
    names = [f"within {tolerance:g}" for tolerance in data.wanted.tolerance]
    rows = []
    for row in potentials(data):
        entries = [_text(row["method"])]
        entries += [_mean(row[name]) for name in names]
        rows.append(_grouped(row, entries, several))
    return Table("Prune potential", note, _heads(["method", *names], several), rows, 1 + several)


def _difference_table(data: Data, several: bool) -> Table:
    name, better = data.main()
    which = f", the {better} the better," if better == "lower" else ""
    note = (
        f"Differences of {axis_words(name)}{which} between two methods, seed by seed, with 95 % intervals. "
        "A method is named as ahead only where the interval leaves zero out even when widened for the number of pairs "
        "at that limit. "
        "Differences that are the same for all seeds, or of one seed, have no interval: more seeds would tell."
    )
    rows = []
    for row in differences(data):
        difference = row["difference"]
        entries = [_text(row["one"]), _text(row["other"]), _text(row["ahead"])]
        entries += [_number(row["limit"], "g"), _mean(difference, change=True), _number(difference.n)]
        rows.append(_grouped(row, entries, several))
    columns = ["one", "other", "ahead", "limit", "one minus other", "pairs"]
    return Table("Paired differences", note, _heads(columns, several), rows, 3 + several)


def _cost_table(data: Data, several: bool) -> Table:
    columns = ["method", "runs", "training time, s", "whole run, s", "samples/s", "training FLOPs", "memory, MB"]
    rows = []
    for row in costs(data):
        megabytes = row["peak_memory_bytes"] / 1e6
        entries = [_text(row["method"]), _number(row["runs"])]
        entries += [_number(row["seconds_training"], ".1f"), _number(row["seconds_in_all"], ".1f")]
        entries += [_number(row["samples_per_second"], ",.0f"), _number(row["training_flops"], ".3g")]
        entries.append(_number(megabytes, ",.0f"))
        rows.append(_grouped(row, entries, several))
    note = "Means over the runs of a method; memory is the most that the process (or the GPU) held."
    return Table("Time and memory", note, _heads(columns, several), rows, 1 + several)


def _heads(columns: list[str], several: bool) -> list[str]:
    return ["of", *columns] if several else columns


def _grouped(row: Mapping[str, Any], entries: list[Entry], several: bool) -> list[Entry]:
    return [_text(row["group"]), *entries] if several else entries


# -- one cell of a table -----------------------------------------------------------------------------------------------


def _text(word: str) -> Entry:
    return Entry(word, word)


def _number(value: float, form: str = "") -> Entry:
    if math.isnan(value):
        return Entry("–", math.inf)
    if not form:
        is_count = value != 0 and float(value).is_integer()
        form = ",.0f" if is_count or abs(value) >= 10 else ".4f"
    return Entry(format(value, form), value)


def _mean(found: Interval, change: bool = False) -> Entry:
    if math.isnan(found.mean):
        return Entry("–", math.inf)
    form = "+.4f" if change else ".4f"
    text = format(found.mean, form)
    if not math.isnan(found.low):
        text += f" [{found.low:{form}}, {found.high:{form}}]"
    return Entry(text, found.mean)


# -- files -------------------------------------------------------------------------------------------------------------


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns rows as CSV; NaN is left empty."""
    text = io.StringIO()
    columns = list(rows[0]) if rows else ["method"]
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        unknown = [name for name, value in row.items() if isinstance(value, float) and math.isnan(value)]
        writer.writerow(dict(row) | dict.fromkeys(unknown, ""))
    return text.getvalue()


def as_markdown(table: Table) -> str:
    """Returns a table with its heading and note as Markdown."""
    numbers = len(table.columns) - table.texts
    lines = [table.columns, ["---"] * table.texts + ["---:"] * numbers]
    for row in table.rows:
        lines.append([entry.text.replace("|", "\\|") for entry in row])
    body = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"## {table.title}\n\n{table.note}\n\n{body}"


def as_tex(table: Table) -> str:
    """Returns a table as a `tabular`, with its heading and note as a comment."""
    form = "l" * table.texts + "r" * (len(table.columns) - table.texts)
    lines = [table.columns]
    lines += [[entry.text for entry in row] for row in table.rows]
    head, *body = [" & ".join(_tex(word) for word in line) + r" \\" for line in lines]
    rules = [rf"\begin{{tabular}}{{{form}}}", r"\hline", head, r"\hline", *body, r"\hline", r"\end{tabular}"]
    return f"% {table.title}: {table.note}\n" + "\n".join(rules) + "\n"


def _tex(text: str) -> str:
    text = text.replace("\\", r"\textbackslash ").replace("–", "--")
    for letter in "&%$#_{}":
        text = text.replace(letter, f"\\{letter}")
    return text
