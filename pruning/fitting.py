"""Makes a network's Python code go along with new shapes: rehearses, finds the integers in the way, sets them.

Widths that a module keeps (`self.hidden`, a list of split sizes) are found by their value: an operation failed, a
dimension around it goes from 64 to 60, and the module that ran it, or one around it, keeps a 64. Each guess is rehearsed; only
what makes failures vanish is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from pruning.rehearsal import Failure, Report
from pruning.sandbox import Attribute
from pruning.shrink import module_integers
from pruning.structure import Mask

if TYPE_CHECKING:
    from pruning.observer import Observer

_MOST_REHEARSALS = 60


@dataclass
class Fit:
    """What it takes to run the shrunken network, and what stands in the way.

    Args:
        attributes: (module, name, value) to set.
        report: of the last rehearsal; without failures and error the network goes along.
    """

    attributes: list[Attribute] = field(default_factory=list)
    report: Report = field(default_factory=Report)

    @property
    def passed(self) -> bool:
        return not self.report.failures and self.report.error is None


def fit(seen: Observer, removed: Mask) -> Fit:
    """Rehearses the removal of labels and adapts integers until it passes or nothing helps."""
    known = module_integers(seen.model, seen.shapes_by_id(removed))
    best = Fit(known, seen.rehearse(removed, known))
    left, level = _MOST_REHEARSALS, 0
    while not best.passed and left > 0 and level < 12:
        better = None
        for guess in _guesses(seen, removed, best, level):
            left -= 1
            changed = {(id(module), name) for module, name, _ in guess}
            attributes = [item for item in best.attributes if (id(item[0]), item[1]) not in changed] + guess
            tried = Fit(attributes, seen.rehearse(removed, attributes))
            if _badness(tried.report) < _badness(best.report):
                better = tried
                break
            if left <= 0:
                break
        if better is None:
            level += 1
        else:
            best, level = better, 0
    return best


def _badness(report: Report) -> tuple[int, int]:
    """Failures count; a run that broke off counts more, the less, the further it came."""
    return (0 if report.error is None else 1_000_000_000 - report.reached, len(report.failures))


def _guesses(seen: Observer, removed: Mask, now: Fit, level: int) -> Iterator[list[Attribute]]:
    """Yields sets of attributes to try: one name in all modules of a kind at once, then all names together."""
    by_name: dict[tuple[type, str], list[Attribute]] = {}
    known = {(id(module), name): value for module, name, value in now.attributes}
    for module, widths in _suspects(seen, removed, now.report, level):
        for name, value in list(vars(module).items()):
            if name in ("training", "_version") or name.startswith("_forward"):
                continue
            value = known.get((id(module), name), value)
            changed = _replaced(value, widths)
            if changed is not None:
                rows = by_name.setdefault((type(module), name), [])
                if all(row[0] is not module for row in rows):
                    rows.append((module, name, changed))
    yield from by_name.values()
    if len(by_name) > 1:
        yield [attribute for rows in by_name.values() for attribute in rows]


def _replaced(value: Any, widths: dict[int, int]) -> Any:
    """Returns the value with old widths replaced by new ones, None where there are none."""
    if type(value) is int:
        return widths.get(value)
    if type(value) in (tuple, list) and value and all(type(item) is int for item in value):
        made = type(value)(widths.get(item, item) for item in value)
        return None if made == value else made
    return None


def _suspects(seen: Observer, removed: Mask, report: Report, level: int) -> Iterator[tuple[nn.Module, dict[int, int]]]:
    """Yields (module `level` steps above a failure, old width -> new width around it)."""
    paths = {module: path for path, module in seen.model.named_modules()}
    for failure in report.failures:
        yield from _upwards(seen, failure.entry.where, level, dict(sorted(failure.widths)))
    if report.error is not None:
        where = paths.get(report.culprit, report.where)
        yield from _upwards(seen, where, level, _widths_of(seen, removed, where) | dict(sorted(report.widths)))


def _upwards(seen: Observer, path: str, level: int, widths: dict[int, int]) -> Iterator[tuple[nn.Module, dict[int, int]]]:
    parts = path.split(".") if path else []
    if level <= len(parts) and widths:
        yield seen.model.get_submodule(".".join(parts[: len(parts) - level])), widths


def _widths_of(seen: Observer, removed: Mask, path: str) -> dict[int, int]:
    """Returns old -> new width of the dimensions of a module's tensors, for errors that no operation explains."""
    found = {}
    structure = seen.structure
    for dimension in structure.dimensions:
        labels = structure.labels_of(dimension)
        gone = int(removed[labels].sum())
        if gone and dimension.name.startswith(path):
            found[len(labels)] = len(labels) - gone
    return found


def blamed(seen: Observer, failures: list[Failure]) -> np.ndarray:
    """Returns the nodes around failures; whole groups, since what fails for one channel fails for its neighbours."""
    structure = seen.structure
    rows = [structure.node_of_label[failure.labels] for failure in failures]
    nodes = np.unique(np.concatenate(rows)) if rows else np.empty(0, np.int64)
    groups = np.unique(structure.group_of_node[nodes[nodes >= 0]])
    return np.flatnonzero(np.isin(structure.group_of_node, groups))


def first_message(fit_result: Fit) -> tuple[str, str, str]:
    """Returns (operation, module path, what went wrong) of what failed first."""
    report = fit_result.report
    if report.failures:
        failure = report.failures[0]
        return failure.entry.name, failure.entry.where, failure.message
    return "python", report.where, f"{type(report.error).__name__}: {str(report.error).splitlines()[:1]}"
