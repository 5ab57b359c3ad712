"""From an experiment file to the runs ("cells") that it stands for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from pruning.errors import UsageError
from utils.experiments.cell import DENSE, WHEREABOUTS, Cell, Experiment, Method, command, plain_name, told
from utils.experiments.plan_file import RUNNERS, Plan, PlanFile, read_plan
from utils.settings import resolve
from utils.settings.core import Core

__all__ = ["DENSE", "RUNNERS", "WHEREABOUTS", "Cell", "Experiment", "command", "plain_name", "read"]

# Of a cell's settings, those that this file makes and has checked already.
GENERATED = ("seed", "pruning_limit", "prune_through", "keep_epochs")


@dataclass(frozen=True)
class Group:
    """One choice of what is compared beside method, sparsity and seed: its name in tables, and its settings."""

    label: str
    settings: dict[str, Any]


def read(path: str, typed: Mapping[str, Any] | None = None) -> Experiment:
    """Reads an experiment file, checks every key, name and value of it, and expands it.

    Args:
        path: the YAML file.
        typed: core settings that win over the file's.

    Raises:
        UsageError: with the line, for whatever does not fit.
    """
    file = PlanFile(path, typed or {})
    plan = read_plan(file)
    checks = _Checks(file, plan)
    cells: dict[str, Cell] = {}
    for seed, group in product(plan.compare["seed"], _groups(plan)):
        for cell in _Expansion(file, plan, seed, group).cells():
            checks.look_at(cell)
            cells.setdefault(cell.key, cell)  # the same run, asked for twice, is made once
    labels = [method.label for method in plan.methods]
    return Experiment(
        plan.name,
        plan.wanted,
        labels,
        cells=list(cells.values()),
        source=path,
        demand=plan.demand,
        warnings=checks.warnings(),
    )


def _groups(plan: Plan) -> list[Group]:
    """Returns every combination of the values of other settings; one that is empty where there are none."""
    names = [name for name in plan.compare if name not in ("prune_criterion", "pruning_limit", "seed")]
    groups = []
    for values in product(*(plan.compare[name] for name in names)):
        settings = dict(zip(names, values, strict=True))
        label = ", ".join(f"{name} {told(value)}" for name, value in settings.items())
        groups.append(Group(label, settings))
    return groups


class _Expansion:
    """The cells of one seed and group."""

    def __init__(self, file: PlanFile, plan: Plan, seed: int, group: Group) -> None:
        self.file = file
        self.plan = plan
        self.seed = seed
        self.group = group

    def cells(self) -> Iterator[Cell]:
        """Yields the dense run first, then method by method with rising limits."""
        dense = self._dense() if self.plan.dense else None
        if dense:
            yield dense
        for method in self.plan.methods:
            yield from self._pruned(method, dense)

    def _dense(self) -> Cell:
        plan, method = self.plan, self.plan.unpruned
        given = plan.base | self.group.settings | method.options
        if plan.mode == "cascade_rewind":
            given["keep_epochs"] = [plan.rewind_epoch]
        epochs = self._epochs(given)
        if plan.rewind_epoch > max(epochs, 0):
            place = self.file.where("rewind_epoch")
            told = f"rewind_epoch {plan.rewind_epoch} is after the {epochs} of the dense run."
            raise UsageError(f"{place}: {told}")
        return self._cell(method, 0.0, given)

    def _pruned(self, method: Method, dense: Cell | None) -> Iterator[Cell]:
        plan = self.plan
        start = dense if plan.from_dense else None
        rewind = dense if plan.mode == "cascade_rewind" else None
        shared = plan.base | plan.retrain if plan.from_dense else plan.base
        for limit, through in self._steps(method):
            given = shared | self.group.settings | method.options
            if through:
                given["prune_through"] = through
            epochs = self._epochs(given)
            if rewind and 0 < epochs <= plan.rewind_epoch:
                told = f"training goes on after rewind_epoch; {method.label} has {epochs} epochs."
                raise UsageError(f"{self.file.where('rewind_epoch')}: {told}")
            cell = self._cell(method, limit, given, start, rewind)
            yield cell
            if plan.mode != "one_shot":
                start = cell  # a cascade goes from limit to limit

    def _steps(self, method: Method) -> Iterator[tuple[float, list[float]]]:
        """Yields the limits that are trained and reported, with those that are only pruned through on the way."""
        limits, every = self.plan.limits, self.plan.every
        if "pruning_limit" in method.options:
            limits = [method.options["pruning_limit"]]
        for place in range(0, len(limits), every):
            *through, limit = limits[place : place + every]
            yield limit, through

    def _epochs(self, given: Mapping[str, Any]) -> int:
        return int((dict(given) | self.file.typed).get("epochs", Core().epochs))

    def _cell(
        self,
        method: Method,
        limit: float,
        given: dict[str, Any],
        start: Cell | None = None,
        rewind: Cell | None = None,
    ) -> Cell:
        own = {"prune_criterion": method.name, "pruning_limit": limit, "seed": self.seed}
        values = given | own | self.file.typed  # what is typed wins
        return Cell(method.label, self.group.label, limit, self.seed, values, method.where, start, rewind)


class _Checks:
    """Lets the command line's own checks look at every cell, and keeps which settings no cell uses."""

    def __init__(self, file: PlanFile, plan: Plan) -> None:
        self.file = file
        self.plan = plan
        self.methods = {method.label: method for method in (plan.unpruned, *plan.methods)}
        self.seen: list[dict[str, Any]] = []
        self.idle: dict[tuple[str, str], str] = {}  # (line, setting) -> why it is not used, "" where it is

    def look_at(self, cell: Cell) -> None:
        """Checks a cell's settings.

        Raises:
            UsageError: with the line of its method.
        """
        values = {name: value for name, value in cell.settings.items() if name not in GENERATED}
        if values in self.seen:  # cells that differ in what the grid generates only
            return
        self.seen.append(values)
        try:
            chosen = resolve.settle(values)
        except UsageError as error:
            raise UsageError(f"{cell.where}: {error}") from error
        for name in values.keys() - self.file.typed.keys():
            about = re.compile(rf"--(no-)?{name}\b")
            said = [line for line in chosen.warnings if about.search(line)]
            place = (self._line_of(name, self.methods[cell.method]), name)
            # Whoever uses it once settles the matter.
            self.idle[place] = self.idle.get(place, said[0]) if said else ""

    def warnings(self) -> list[str]:
        """Returns a line per setting that no cell uses: few are used by every run, but one used by none is a slip."""
        return [f"{line}: {said}" for (line, _), said in self.idle.items() if said]

    def _line_of(self, name: str, method: Method) -> str:
        """Returns where the setting of a cell comes from."""
        if name in method.lines:
            return method.lines[name]
        if name in self.plan.compare:
            return self.file.where("compare", name)
        if name in self.plan.retrain and method.label:
            return self.file.where("retrain", name)
        return self.file.where("base", name)
