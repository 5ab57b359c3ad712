"""Finished runs, brought together for a report: those of an experiment, or those whose folders match a pattern."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruning.errors import UsageError
from utils.experiments.cell import DENSE, WHEREABOUTS
from utils.experiments.cells import Cells
from utils.experiments.plan_file import RUNNERS
from utils.experiments.report.data import Data, Finished
from utils.experiments.wanted import Wanted
from utils.runs.run_folder import RunFolder

# Settings that two runs of one method may differ in.
TELLING = ("model", "data_set", "prune_criterion", "pruning_limit", "seed")

NO_METHOD = {*WHEREABOUTS, *RUNNERS, *TELLING, "checkpoint_name"}


def gather(cells: Cells) -> Data:
    """Returns the finished and the failed runs of an experiment."""
    plan = cells.experiment
    data = Data(plan.name, [], plan.wanted)
    for cell in plan.cells:
        record, folder, error = cells.record(cell), cells.run_of(cell), cells.error(cell)
        if record is not None and folder is not None:
            layers, seconds = _layers(folder), cells.seconds(cell)
            run = Finished(cell.method, cell.group, cell.limit, cell.seed, record, folder.path, layers, seconds)
            data.runs.append(run)
        elif error:
            data.lost.append((cell.title, error, folder.path if folder else None))
        elif cells.state(cell) == "interrupted":
            data.interrupted += 1
        else:
            data.open += 1
    data.note = _note(data)
    return data


@dataclass
class _Found:
    """A run folder that matches the pattern of --report, with its settings and its result."""

    folder: RunFolder
    settings: dict[str, Any]
    record: dict[str, Any]


def gather_runs(pattern: str, results: Path) -> Data:
    """Returns the runs whose folders, or the folders around them, match a pattern.

    A method is a criterion with whatever settings tell its runs apart from others of it; models and data sets make
    groups of their own.

    Raises:
        UsageError: if there are none.
    """
    data = Data(f"runs {pattern}", [], Wanted())
    found = _find(pattern, results, data)
    if not found:
        raise UsageError(f"--report {pattern}: no run folder matches, in {results} or here.")
    groups = _varying([one.settings for one in found], only=("model", "data_set"))
    runs: dict[tuple[str, str, float, int], Finished] = {}
    for one in found:
        status = one.record.get("status")
        folder = one.folder
        if status == "finished":
            what = _identity(one, found, groups)
            runs[what] = Finished(*what, one.record, folder.path, _layers(folder))  # the newest of equals
        elif status == "failed":
            data.lost.append((folder.path.name, f"see {folder.output / 'log.txt'}", folder.path))
        elif status == "interrupted":
            data.interrupted += 1
        else:
            data.lost.append((folder.path.name, f"{folder.result_file} is damaged", folder.path))
    data.runs = list(runs.values())
    data.note = _note(data)
    differing = _varying([one.settings for one in found if one.settings["prune_criterion"] == DENSE])
    if differing:
        data.note += f" Dense runs differ in {', '.join(differing)}: all are compared with the newest of each seed."
    return data


def _find(pattern: str, results: Path, data: Data) -> list[_Found]:
    """Returns the trainings that match; damaged ones are noted in the data."""
    matches = glob.glob(str(results / pattern)) or glob.glob(os.path.expanduser(pattern))
    files: set[Path] = set()
    for match in matches:
        files.update(Path(match).rglob("result.json"))
    found = []
    for file in sorted(files):
        folder = RunFolder(file.parent)
        if not folder.settings_file.is_file():
            continue
        settings: dict[str, Any] = {}
        with suppress(UsageError):  # one damaged run must not keep the others from being shown
            settings = folder.settings()
        if not settings.keys() >= set(TELLING):
            data.lost.append((folder.path.name, f"{folder.settings_file} is damaged", folder.path))
        elif not settings.get("eval"):
            found.append(_Found(folder, settings, folder.result()))
    return found


def _identity(one: _Found, found: Sequence[_Found], groups: Sequence[str]) -> tuple[str, str, float, int]:
    """Returns a run's method, group, limit and seed."""
    settings = one.settings
    criterion = settings["prune_criterion"]
    group = ", ".join(str(settings[name]) for name in groups)
    seed = int(settings["seed"])
    if criterion == DENSE:
        return "", group, 0.0, seed
    same = [other.settings for other in found if other.settings["prune_criterion"] == criterion]
    told = ", ".join(f"{name} {settings.get(name)}" for name in _varying(same))
    method = f"{criterion} ({told})" if told else criterion
    return method, group, float(settings["pruning_limit"]), seed


def _varying(settings: Sequence[Mapping[str, Any]], only: Sequence[str] = ()) -> list[str]:
    """Returns the names of settings that are not the same in all of these runs."""
    names = dict.fromkeys(only)
    if not only:
        for one in settings:
            names |= dict.fromkeys(one)
    varying = []
    for name in names:
        if name in NO_METHOD and not only:
            continue
        first = settings[0].get(name)
        if any(one.get(name) != first for one in settings):
            varying.append(name)
    return varying


def _layers(folder: RunFolder) -> dict[str, float]:
    """Returns sparsity by layer after the last pruning event; nothing where no event is recorded."""
    with suppress(OSError, ValueError, KeyError, IndexError, TypeError):
        events = json.loads((folder.output / "pruning_events.json").read_text(encoding="utf-8"))
        return dict(events[-1]["sparsities"])
    return {}


def _note(data: Data) -> str:
    """Returns the line below the title: how many runs there are."""
    counts = [f"{len(data.runs)} finished"]
    if data.lost:
        counts.append(f"{len(data.lost)} failed")
    if data.interrupted:
        counts.append(f"{data.interrupted} interrupted")
    if data.open:
        counts.append(f"{data.open} still to come")
    seeds = len({run.seed for run in data.runs})
    note = f"Runs: {', '.join(counts)}; {seeds} seed{'s' * (seeds != 1)}."
    if seeds == 1:
        note += " A single seed: there are no intervals."
    return note
