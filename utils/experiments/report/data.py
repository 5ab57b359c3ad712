"""The numbers of a report: means over seeds with intervals, prune potential, paired differences."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from scipy.special import stdtrit  # scipy.stats, which has it too, takes a second to import

from pruning.measure.measures import Better, kind_of
from utils.experiments.wanted import Wanted
from utils.runs.result import measures_in


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

    def main(self) -> tuple[str, Better | None]:
        """Returns the field of the main measure, of the first run that has one, and which way is good."""
        for run in self.runs:
            for name, better in measures_in(run.record).items():
                return f"test_{name}", better
        has_loss = any("test_loss" in run.record for run in self.runs)
        return ("test_loss", "lower") if has_loss else ("test_accuracy", "higher")

    def shown(self) -> list[str]:
        """Returns the fields of the vertical axes: those that were asked for, or the main measure."""
        main, _ = self.main()
        return self.wanted.y or [main]

    def groups(self) -> list[str]:
        """Returns what else is compared, in order of appearance."""
        return list(dict.fromkeys(run.group for run in self.runs))

    def methods(self, group: str) -> list[str]:
        """Returns the methods of a group in order of appearance."""
        return list(dict.fromkeys(run.method for run in self.runs if run.group == group and run.method))

    def methods_and_dense(self, group: str) -> list[str]:
        """Returns the methods of a group, after "" for the dense runs if it has any."""
        methods = self.methods(group)
        return ["", *methods] if self.dense(group) else methods

    def limits(self, group: str, method: str) -> list[float]:
        """Returns the limits of a method, ascending."""
        return sorted({run.limit for run in self.runs if (run.group, run.method) == (group, method)})

    def dense(self, group: str) -> list[Finished]:
        """Returns the dense runs that a group is compared with."""
        return self.at(group, "", None)

    def at(self, group: str, method: str, limit: float | None) -> list[Finished]:
        """Returns the runs of a method at a limit, one per seed; None for all limits."""
        found = [run for run in self.runs if (run.group, run.method) == (group, method)]
        if limit is None:
            return found
        return [run for run in found if run.limit == limit]


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Returns the mean with Student's t interval; NaN among the values are left out.

    One value has no interval. Nor have values that are all the same: their spread would be called zero, with certainty.
    """
    values = [value for value in values if not math.isnan(value)]
    n = len(values)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = statistics.fmean(values)
    # Differences that are the same may still differ in their last binary digits.
    spread = max(values) - min(values)
    largest = max(abs(value) for value in values)
    if spread <= 1e-9 * largest:
        return Interval(mean, math.nan, math.nan, n)
    quantile = float(stdtrit(n - 1, (1 + level) / 2))  # of Student's t distribution
    half = quantile * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def mean_of(runs: Sequence[Finished], name: str) -> Interval:
    """Returns the mean of a number over runs, with its interval."""
    return interval([run.value(name) for run in runs])


def paired(ones: Sequence[Finished], others: Sequence[Finished], name: str) -> list[float]:
    """Returns ones - others, for each seed that both have."""
    by_seed = {run.seed: run.value(name) for run in others}
    return [run.value(name) - by_seed[run.seed] for run in ones if run.seed in by_seed]


# -- the tables of a report: a list of rows, each {column: value} ------------------------------------------------------


def summary(data: Data) -> list[dict[str, Any]]:
    """Returns one row per group, method and limit: the mean of every axis, with the interval of every y."""
    rows = []
    for group in data.groups():
        dense = data.dense(group)
        for method in data.methods_and_dense(group):
            for limit in data.limits(group, method):
                runs = data.at(group, method, limit)
                row: dict[str, Any] = {"group": group, "method": method or "dense", "limit": limit, "n": len(runs)}
                for x in data.wanted.x:
                    row[x] = mean_of(runs, x).mean
                for y in data.shown():
                    row |= _with_ends(y, mean_of(runs, y))
                    row |= _with_ends(f"{y}_minus_dense", interval(paired(runs, dense, y)))
                rows.append(row)
    return rows


def _with_ends(name: str, found: Interval) -> dict[str, float]:
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def potentials(data: Data) -> list[dict[str, Any]]:
    """Returns, per method and tolerance, the largest sparsity whose main measure is within it of the dense run's.

    Each seed is compared with its own dense run (Liebenwein et al. 2021, arXiv:2103.03014); 0 where none is. Nothing
    where nobody said which way is good.
    """
    rows: list[dict[str, Any]] = []
    name, better = data.main()
    for group in data.groups():
        dense = {run.seed: run.value(name) for run in data.dense(group)}
        if not dense or better is None:
            continue
        for method in data.methods(group):
            row: dict[str, Any] = {"group": group, "method": method}
            runs = [run for run in data.at(group, method, None) if run.seed in dense]
            for tolerance in data.wanted.tolerance:
                enough = {seed: _worst(value, tolerance, name, better) for seed, value in dense.items()}
                row[f"within {tolerance:g}"] = interval(_largest_sparsities(runs, enough, name, better))
            rows.append(row)
    return rows


def _largest_sparsities(
    runs: Sequence[Finished], enough: Mapping[int, float], name: str, better: Better
) -> list[float]:
    """Returns, per seed, the largest sparsity at which a measure is good enough; 0 where it never is."""
    best = dict.fromkeys([run.seed for run in runs], 0.0)
    for run in runs:
        value, bound = run.value(name), enough[run.seed]
        is_enough = value >= bound if better == "higher" else value <= bound
        if is_enough:
            best[run.seed] = max(best[run.seed], run.value("weight_sparsity"))
    return list(best.values())


def is_absolute(name: str) -> bool:
    """Says whether tolerances are differences of a measure: of one that may have any size they are shares of it."""
    kind = kind_of(name.removeprefix("test_"))
    return kind.fraction or kind.better == "higher"


def _worst(dense: float, tolerance: float, name: str, better: Better) -> float:
    """Returns the worst value that is within a tolerance of the dense run's."""
    lost = tolerance if is_absolute(name) else tolerance * abs(dense)
    # The slack is for decimals that binary numbers cannot hold: 0.95 - 0.94 is more than 0.01.
    lost += 1e-9 * max(1.0, abs(dense))
    return dense - lost if better == "higher" else dense + lost


def differences(data: Data) -> list[dict[str, Any]]:
    """Returns, per limit and pair of methods, the mean difference over common seeds with its 95 % interval.

    It is that of the main measure. `ahead` names a method only if the interval leaves zero out at a level that allows
    for the number of pairs at this limit (Bonferroni), and is "not told apart" otherwise.
    """
    rows = []
    name, better = data.main()
    for group in data.groups():
        limits = {run.limit for run in data.runs if run.group == group and run.method}
        for limit in sorted(limits):
            there = [method for method in data.methods(group) if data.at(group, method, limit)]
            pairs = list(combinations(there, 2))
            for one, other in pairs:
                values = paired(data.at(group, one, limit), data.at(group, other, limit), name)
                strict = interval(values, 1 - 0.05 / len(pairs))
                row = {"group": group, "limit": limit, "one": one, "other": other}
                row |= {"difference": interval(values), "ahead": _ahead(one, other, strict, better)}
                rows.append(row)
    return rows


def _ahead(one: str, other: str, difference: Interval, better: Better | None) -> str:
    if better is None:
        return "which way is good is not known"
    higher, lower = (one, other) if better == "higher" else (other, one)
    # An end that is NaN is on neither side of zero.
    if difference.low > 0:
        return higher
    if difference.high < 0:
        return lower
    return "not told apart"


def costs(data: Data) -> list[dict[str, Any]]:
    """Returns what each method took: training time, whole time, speed, FLOPs, memory; means over its runs."""
    rows = []
    for group in data.groups():
        for method in data.methods_and_dense(group):
            runs = data.at(group, method, None)
            row: dict[str, Any] = {"group": group, "method": method or "dense", "runs": len(runs)}
            for name in ("seconds_training", "samples_per_second", "training_flops", "peak_memory_bytes"):
                row[name] = mean_of(runs, name).mean
            seconds = [run.seconds for run in runs if run.seconds is not None]
            row["seconds_in_all"] = statistics.fmean(seconds) if seconds else math.nan
            rows.append(row)
    return rows


def layer_sparsities(data: Data, group: str) -> tuple[float, dict[str, dict[str, float]]]:
    """Returns the limit that most methods share (the highest of those), and method -> layer -> mean sparsity there."""
    limits = [limit for method in data.methods(group) for limit in data.limits(group, method)]
    if not limits:
        return math.nan, {}
    shared_by = Counter(limits)
    chosen = max(shared_by, key=lambda limit: (shared_by[limit], limit))
    found: dict[str, dict[str, float]] = {}
    for method in data.methods(group):
        runs = [run for run in data.at(group, method, chosen) if run.layers]
        if not runs:
            continue
        means = {}
        for name in runs[0].layers:
            means[name] = statistics.fmean(run.layers.get(name, math.nan) for run in runs)
        found[method] = means
    return chosen, found
