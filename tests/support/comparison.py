"""Runs a tracked comparison (an experiment file) in this process, and prints it as a table.

Finished cells are kept under gitignored/results, so a stopped comparison goes on where it was.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import main
from utils.experiments import experiment
from utils.experiments.cells import Cells
from utils.experiments.experiment import DENSE, Cell
from utils.settings.registry import ROOT


class Comparison:
    """Cells of an experiment file.

    Args:
        file: the experiment file, relative to the repository.
    """

    def __init__(self, file: str) -> None:
        plug_ins = ROOT / "tests" / "support" / "plugins"
        plan = experiment.read(str(ROOT / file), {"plugin_dir": str(plug_ins), "save_freq": 100})
        self.cells = Cells(plan, ROOT / "gitignored" / "results" / plan.slug)
        self.criteria = {cell.settings["prune_criterion"] for cell in plan.cells}

    def run(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the records of every method, seed by seed; runs what is not finished."""
        self.cells.make_folders()
        self.cells.forget_failures()
        self.cells.work(main.main, lambda what, cell: None)
        records: dict[str, list[dict[str, Any]]] = {}
        for cell in self.cells.experiment.cells:
            record = self.cells.record(cell)
            assert record is not None, self.cells.error(cell)
            records.setdefault(label(cell), []).append(record)
        return records


def label(cell: Cell) -> str:
    """Names a method in tables: with its limit, and the values of what else is compared."""
    limit = [f"{cell.limit:g}"] if cell.method else []
    return " ".join([cell.method or DENSE, *limit, *(part.split(" ", 1)[1] for part in cell.group.split(", ") if part)])


def accuracies(records: dict[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    """Returns test accuracies by method."""
    return {name: [record["test_accuracy"] for record in runs] for name, runs in records.items()}


def print_table(records: dict[str, list[dict[str, Any]]]) -> None:
    """Prints mean and standard deviation by method."""
    print("\n\n| criterion | epochs | sparsity reached | weights left | test accuracy, mean ± std | n |")
    print("|---|---|---|---|---|---|")
    for name, values in accuracies(records).items():
        first, deviation = records[name][0], statistics.stdev(values)
        reached = f"{first['sparsity_reached']:.4f} {first['target']}"
        accuracy = f"{statistics.mean(values):.4f} ± {deviation:.4f}"
        print(f"| {name} | {first['epochs']} | {reached} | {first['weights_left']:,} | {accuracy} | {len(values)} |")


def print_gap(records: dict[str, list[dict[str, Any]]], better: str, worse: str) -> None:
    """Prints the difference of two means in standard errors."""
    a, b = accuracies(records)[better], accuracies(records)[worse]
    error = math.sqrt(statistics.variance(a) / len(a) + statistics.variance(b) / len(b))
    gap = statistics.mean(a) - statistics.mean(b)
    print(f"{better} - {worse}: {gap:+.4f}, {gap / error:+.1f} standard errors")
