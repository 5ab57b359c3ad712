"""The numbers of a report: means over seeds with intervals, prune potential, paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from pruning.errors import UsageError, nearest

# What may be an axis: field of result.json -> what a person calls it.
AXES = {
    "weight_sparsity": "fraction of weights removed",
    "node_sparsity": "fraction of nodes removed",
    "sparsity_reached": "sparsity reached, in the method's own unit",
    "effective_weight_sparsity": "fraction of weights removed or on no path",
    "weights_left": "weights left",
    "nodes_left": "nodes left",
    "parameter_bytes": "bytes of parameters",
    "flops_per_sample": "FLOPs per sample, masked weights computed",
    "flops_per_sample_nonzero": "FLOPs per sample, without masked weights",
    "training_flops": "FLOPs of training",
    "latency_seconds": "seconds per sample",
    "seconds_training": "seconds of training",
    "samples_per_second": "samples per second in training",
    "peak_memory_bytes": "bytes of memory at most",
    "test_accuracy": "test accuracy",
    "test_loss": "test loss",
    "train_accuracy": "train accuracy",
    "train_loss": "train loss",
}


@dataclass
class Wanted:
    """What a report shows, as an experiment file says it.

    Args:
        x: fields of result.json for the horizontal axes.
        y: fields for the vertical ones.
        tolerance: losses of accuracy against dense within which the largest sparsity is looked for.
    """

    x: list[str] = field(default_factory=lambda: ["weight_sparsity", "flops_per_sample_nonzero"])
    y: list[str] = field(default_factory=lambda: ["test_accuracy"])
    tolerance: list[float] = field(default_factory=lambda: [0.0, 0.005, 0.01])

    @classmethod
    def read(cls, content: Any, where: Callable[..., str]) -> Wanted:
        """Returns what the block `report` of a file says; raises UsageError with the line for what does not fit."""
        content = {} if content is None else content
        known = ["x", "y", "reference", "tolerance"]
        if not isinstance(content, dict):
            raise UsageError(f"{where()}: report must hold {', '.join(known)}.")
        for name, value in content.items():
            if name not in known:
                raise UsageError(f"{where(name)}: there is no key {name!r}.{nearest(str(name), known)}")
            if name == "reference" and value != "dense":
                raise UsageError(f"{where(name)}: the reference is dense; {value!r} was given.")
        found = {name: cls._listed(name, content[name], where) for name in known if name in content}
        found.pop("reference", None)
        return cls(**found)

    @staticmethod
    def _listed(name: str, value: Any, where: Callable[..., str]) -> list[Any]:
        values = value if isinstance(value, list) else [value]
        if not values:
            raise UsageError(f"{where(name)}: {name} is empty; leave it out for the usual.")
        for number, entry in enumerate(values):
            place = where(name, number)
            if entry in values[:number]:
                raise UsageError(f"{place}: {entry} is there twice.")
            if name == "tolerance" and not (type(entry) in (int, float) and 0 <= entry <= 1):
                raise UsageError(f"{place}: a tolerance is a loss of accuracy, such as 0.005; {entry!r} was given.")
            if name in ("x", "y") and str(entry) not in AXES:
                near = nearest(str(entry), AXES)
                raise UsageError(f"{place}: {entry!r} cannot be an axis.{near} There are {', '.join(AXES)}.")
        return values


class Interval(NamedTuple):
    """A mean with a 95 % interval (or one of another level) from n values; the ends are NaN where there is none."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Args:
        method: its label; empty for a dense run.
        group: what else is compared.
        limit: the sparsity asked for.
        seed: of the run; dense and pruned runs of one seed are a pair.
        record: result.json.
        folder: the run folder.
        layers: sparsity by layer.
        seconds: from start to end, None if not known.
    """

    method: str
    group: str
    limit: float
    seed: int
    record: Mapping[str, Any]
    folder: Path
    layers: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None

    def value(self, name: str) -> float:
        """Returns a number of the record, NaN if it is not there."""
        value = self.record.get(name)
        return float(value) if isinstance(value, (int, float)) else math.nan


@dataclass
class Data:
    """What a report is made of.

    Args:
        title: of the page.
        runs: the finished ones.
        wanted: what is shown.
        lost: (what, why, folder or None) of each run that failed.
        open: how many runs are still to come, or at work.
        note: a line below the title.
        interrupted: how many were stopped on the way, and can go on.
    """

    title: str
    runs: list[Finished]
    wanted: Wanted
    lost: list[tuple[str, str, Path | None]] = field(default_factory=list)
    open: int = 0
    note: str = ""
    interrupted: int = 0

    def groups(self) -> list[str]:
        """Returns what else is compared, in order of appearance."""
        return list(dict.fromkeys(run.group for run in self.runs))

    def methods(self, group: str) -> list[str]:
        """Returns the methods of a group in order of appearance."""
        return list(dict.fromkeys(run.method for run in self.runs if run.group == group and run.method))

    def limits(self, group: str, method: str) -> list[float]:
        """Returns the limits of a method, ascending."""
        return sorted({run.limit for run in self.runs if (run.group, run.method) == (group, method)})

    def dense(self, group: str) -> list[Finished]:
        """Returns the dense runs that a group is compared with."""
        return self.at(group, "", None)

    def at(self, group: str, method: str, limit: float | None) -> list[Finished]:
        """Returns the runs of a method at a limit, one per seed; None for all limits."""
        found = [run for run in self.runs if (run.group, run.method) == (group, method)]
        return [run for run in found if limit is None or run.limit == limit]


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Returns the mean with Student's t interval; NaN among the values are left out.

    One value has no interval. Nor have values that are all the same: their spread would be called zero, with certainty.
    """
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean, n = statistics.fmean(values), len(values)
    # Differences that are the same may still differ in their last binary digits.
    if max(values) - min(values) <= 1e-9 * max(map(abs, values)):
        return Interval(mean, math.nan, math.nan, n)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def paired(ones: Sequence[Finished], others: Sequence[Finished], name: str) -> list[float]:
    """Returns ones - others, for each seed that both have."""
    by_seed = {run.seed: run.value(name) for run in others}
    return [run.value(name) - by_seed[run.seed] for run in ones if run.seed in by_seed]


def summary(data: Data) -> list[dict[str, Any]]:
    """Returns one row per group, method and limit: the mean of every axis, with the interval of every y."""
    rows = []
    for group in data.groups():
        dense = data.dense(group)
        for method in [""] * bool(dense) + data.methods(group):
            for limit in data.limits(group, method):
                runs = data.at(group, method, limit)
                rows.append({"group": group, "method": method or "dense", "limit": limit, "n": len(runs)})
                for x in data.wanted.x:
                    rows[-1][x] = interval([run.value(x) for run in runs]).mean
                for y in data.wanted.y:
                    found, change = interval([run.value(y) for run in runs]), interval(paired(runs, dense, y))
                    rows[-1] |= {y: found.mean, f"{y}_low": found.low, f"{y}_high": found.high}
                    rows[-1] |= {f"{y}_minus_dense": change.mean, f"{y}_minus_dense_low": change.low}
                    rows[-1] |= {f"{y}_minus_dense_high": change.high}
    return rows


def potentials(data: Data) -> list[dict[str, Any]]:
    """Returns, per method and tolerance, the largest sparsity whose test accuracy is within it of the dense run's.

    Each seed is compared with its own dense run (Liebenwein et al. 2021, arXiv:2103.03014); 0 where none is.
    """
    rows = []
    for group in data.groups():
        dense = {run.seed: run.value("test_accuracy") for run in data.dense(group)}
        for method in data.methods(group) if dense else ():
            row: dict[str, Any] = {"group": group, "method": method}
            for tolerance in data.wanted.tolerance:
                best = {run.seed: 0.0 for run in data.at(group, method, None) if run.seed in dense}
                for run in data.at(group, method, None):
                    # The slack is for decimals that binary numbers cannot hold: 0.95 - 0.94 is more than 0.01.
                    enough = run.value("test_accuracy") >= dense.get(run.seed, math.inf) - tolerance - 1e-9
                    if enough:
                        best[run.seed] = max(best[run.seed], run.value("weight_sparsity"))
                row[f"within {tolerance:g}"] = interval(list(best.values()))
            rows.append(row)
    return rows


def differences(data: Data, name: str = "test_accuracy") -> list[dict[str, Any]]:
    """Returns, per limit and pair of methods, the mean difference over common seeds with its 95 % interval.

    `ahead` names a method only if the interval leaves zero out at a level that allows for the number of pairs at
    this limit (Bonferroni), and is "not told apart" otherwise.
    """
    rows = []
    for group in data.groups():
        limits = sorted({run.limit for run in data.runs if run.group == group and run.method})
        for limit in limits:
            there = [method for method in data.methods(group) if data.at(group, method, limit)]
            pairs = list(combinations(there, 2))
            for one, other in pairs:
                values = paired(data.at(group, one, limit), data.at(group, other, limit), name)
                strict = interval(values, 1 - 0.05 / len(pairs))
                ahead = one if strict.low > 0 else other if strict.high < 0 else "not told apart"
                row = {"group": group, "limit": limit, "one": one, "other": other}
                rows.append(row | {"difference": interval(values), "ahead": ahead})
    return rows


def costs(data: Data) -> list[dict[str, Any]]:
    """Returns what each method took: training time, whole time, speed, FLOPs, memory; means over its runs."""
    rows = []
    for group in data.groups():
        for method in [""] * bool(data.dense(group)) + data.methods(group):
            runs = data.at(group, method, None)
            row: dict[str, Any] = {"group": group, "method": method or "dense", "runs": len(runs)}
            for name in ("seconds_training", "samples_per_second", "training_flops", "peak_memory_bytes"):
                row[name] = interval([run.value(name) for run in runs]).mean
            whole = [run.seconds for run in runs if run.seconds is not None]
            rows.append(row | {"seconds_in_all": statistics.fmean(whole) if whole else math.nan})
    return rows


def layer_sparsities(data: Data, group: str) -> tuple[float, dict[str, dict[str, float]]]:
    """Returns the limit that most methods share (the highest of those), and method -> layer -> mean sparsity there."""
    limits = [limit for method in data.methods(group) for limit in data.limits(group, method)]
    if not limits:
        return math.nan, {}
    chosen = max(set(limits), key=lambda limit: (limits.count(limit), limit))
    found: dict[str, dict[str, float]] = {}
    for method in data.methods(group):
        runs = [run for run in data.at(group, method, chosen) if run.layers]
        if runs:
            names = runs[0].layers
            found[method] = {name: statistics.fmean(run.layers.get(name, math.nan) for run in runs) for name in names}
    return chosen, found
