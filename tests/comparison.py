"""Runs the cells of a tracked comparison (an experiment file) one by one, and prints them as a table.

Finished cells are kept under gitignored/results, so a stopped comparison goes on where it was.
"""

from __future__ import annotations

import json
import math
import statistics
from itertools import product
from pathlib import Path
from typing import Any

import yaml

import main

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = Path(__file__).resolve().parent / "plugins"


class Comparison:
    """Cells of an experiment file: every method, pruning limit, other setting to compare, and seed.

    Args:
        file: the experiment file, relative to the repository.
    """

    def __init__(self, file: str) -> None:
        plan = yaml.safe_load((ROOT / file).read_text())
        self.base, compare = plan["base"], plan["compare"]
        methods = [{"name": m} if isinstance(m, str) else m for m in compare["prune_criterion"]]
        limits = compare.get("pruning_limit", [self.base.get("pruning_limit")])
        self.others = [key for key in compare if key not in ("prune_criterion", "pruning_limit", "seed")]
        others = [dict(zip(self.others, values, strict=True)) for values in product(*map(compare.get, self.others))]
        # A dense run has no limit; one is enough.
        self.methods = [
            m | {"pruning_limit": limit} | other
            for other in others
            for m in methods
            for limit in (limits if m["name"] != "EmptyCrit" else [0.0])
        ]
        self.seeds = compare["seed"]
        self.results = ROOT / "gitignored" / "results" / Path(file).stem

    def label(self, method: dict[str, Any]) -> str:
        """Names a method in tables and run folders."""
        rewinding = " with rewinding" if method.get("enable_rewinding") else ""
        limit = f" {method['pruning_limit']:g}" if method["name"] != "EmptyCrit" else ""
        name = method.get("label", method["name"] + rewinding + limit)
        return " ".join([name, *(str(method[key]) for key in self.others)])

    def run_cell(self, method: dict[str, Any], seed: int) -> dict[str, Any]:
        """Returns result.json of one run, which is made unless it is there."""
        name = f"{self.label(method)}_{seed}".replace(" ", "-")
        for file in self.results.glob(f"*_{name}/result.json"):
            record = json.loads(file.read_text())
            if record["status"] == "finished":
                return record
        settings = self.base | {k: v for k, v in method.items() if k not in ("name", "label")}
        settings |= {"prune_criterion": method["name"], "seed": seed, "run_name": name, "results_dir": self.results}
        settings |= {"plugin_dir": PLUGINS, "save_freq": 100}
        argv = [part for k, v in settings.items() for part in ([f"--{k}"] if v is True else [f"--{k}", str(v)])]
        assert main.main([*argv, "--quiet", "--no-tensorboard"]) == 0
        files = sorted(self.results.glob(f"*_{name}/result.json"))
        return json.loads(files[-1].read_text())

    def run(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the records of every method, seed by seed."""
        return {self.label(method): [self.run_cell(method, seed) for seed in self.seeds] for method in self.methods}


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
