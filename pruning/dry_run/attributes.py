"""Makes a network's Python code go along with new shapes: rehearses, finds the integers in the way, sets them.

Widths that a module keeps (`self.hidden`, a list of split sizes) are found by their value: an operation failed, a
dimension around it goes from 64 to 60, and the module that ran it, or one around it, keeps a 64. Each guess is
rehearsed; only what makes failures vanish is kept.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from pruning.dry_run.dry_run import Failure, Report, dry_run
from pruning.modules.attributes import Attribute, module_integers
from pruning.trace.components import Mask
from pruning.trace.traced import TracedNetwork

_NOT_WIDTHS = frozenset(("training", "_version", "_is_full_backward_hook"))

# Operations whose sizes the network's code writes down, and how they are told.
_TAKES_SIZES = {
    "view": "view to", "_unsafe_view": "view to", "_reshape_alias": "view to", "reshape": "reshape to",
    "expand": "expand to", "repeat": "repeat to", "new_zeros": "new_zeros of", "zeros": "zeros of",
    "split": "split into", "split_with_sizes": "split into", "chunk": "chunk into",
}  # fmt: skip

_MOST_SIZES = 4


@dataclass
class Adaptation:
    """What it takes to run the shrunken network, and what stands in the way.

    Args:
        attributes: (module, name, value) to set.
        report: of the last rehearsal; if it passed, the network goes along.
    """

    attributes: list[Attribute] = field(default_factory=list)
    report: Report = field(default_factory=Report)

    @property
    def passed(self) -> bool:
        return self.report.passed


def adapt_attributes(traced: TracedNetwork, removed: Mask, most_rehearsals: int = 40) -> Adaptation:
    """Rehearses the removal of labels and adapts integers until it passes or nothing helps."""
    best = plain(traced, removed)
    level = 0
    deepest = max(path.count(".") + 1 for path, _ in traced.model.named_modules())
    while not best.passed and level <= deepest and most_rehearsals > 0:
        better = None
        for guess in _guesses(traced, removed, best, level):
            most_rehearsals -= 1
            attributes = _merged(best.attributes, guess)
            tried = Adaptation(attributes, dry_run(traced, removed, attributes))
            better = tried if _improved(best.report, tried.report) else None
            if better is not None or most_rehearsals <= 0:
                break
        level = 0 if better is not None else level + 1
        best = better or best
    return best


def plain(traced: TracedNetwork, removed: Mask) -> Adaptation:
    """Rehearses with nothing adapted but what torch's own modules keep."""
    known = module_integers(traced.model, traced.shapes_by_id(removed), traced.grouped)
    return Adaptation(known, dry_run(traced, removed, known))


def _merged(attributes: list[Attribute], guess: list[Attribute]) -> list[Attribute]:
    changed = {(id(module), name) for module, name, _ in guess}
    return [item for item in attributes if (id(item[0]), item[1]) not in changed] + guess


def badness(report: Report) -> tuple[int, int]:
    """Failures count; a run that broke off counts more, the less, the further it came."""
    return (0 if report.error is None else 1_000_000_000 - report.reached, len(report.failures))


def _improved(before: Report, now: Report) -> bool:
    """Says whether the run comes further, or as far with more failures gone than new ones come."""
    if now.passed or badness(now)[0] != badness(before)[0]:
        return now.passed or badness(now)[0] < badness(before)[0]
    old, new = ({failure.index for failure in report.failures} for report in (before, now))
    return len(old - new) > len(new - old)


def _guesses(traced: TracedNetwork, removed: Mask, now: Adaptation, level: int) -> Iterator[list[Attribute]]:
    """Yields sets of attributes to try; where one old width became several, with each of these in turn."""
    suspects = list(_suspects(traced, removed, now.report, level))
    turns = max((Counter(old for old, _ in widths).most_common(1)[0][1] for _, widths in suspects), default=0)
    for turn in range(turns):
        yield from _guesses_of([(module, _picked(widths, turn)) for module, widths in suspects], now)


def _picked(widths: set[tuple[int, int]], turn: int) -> dict[int, int]:
    """Returns old width -> new width, of several the one whose turn it is, the largest first."""
    found: dict[int, list[int]] = defaultdict(list)
    for old, new in sorted(widths, reverse=True):
        found[old].append(new)
    return {old: news[turn % len(news)] for old, news in found.items()}


def _guesses_of(suspects: list[tuple[nn.Module, dict[int, int]]], now: Adaptation) -> Iterator[list[Attribute]]:
    """Kinds of modules are tried side by side, for failures in one do not depend on another.

    In the first round the first name of each kind, in the second the second, and at last all names together.
    """
    by_kind: dict[type, dict[str, list[Attribute]]] = defaultdict(lambda: defaultdict(list))
    known = {(id(module), name): value for module, name, value in now.attributes}
    for module, widths in suspects:
        for name, value in vars(module).items():
            guessed = known.get((id(module), name), value)
            # A number may have been guessed wrong; of several numbers, some may be right already.
            changed = _replaced(value if type(value) is int else guessed, widths) if name not in _NOT_WIDTHS else None
            rows = by_kind[type(module)][name] if changed not in (None, guessed) else []
            if changed not in (None, guessed) and all(row[0] is not module for row in rows):
                rows.append((module, name, changed))
    names = [list(kinds.values()) for kinds in by_kind.values() if kinds]
    most = max(map(len, names), default=0)
    for turn in range(most):
        yield [attribute for rows in names if turn < len(rows) for attribute in rows[turn]]
    if most > 1:
        yield [attribute for rows in names for row in rows for attribute in row]
    if len(names) > 1:
        yield from (row for rows in names for row in rows)


def _replaced(value: Any, widths: dict[int, int]) -> Any:
    """Returns the value with old widths replaced by new ones, None where there are none."""
    if type(value) is int:
        return widths.get(value)
    if type(value) in (tuple, list) and value and all(type(item) is int for item in value):
        made = type(value)(widths.get(item, item) for item in value)
        return None if made == value else made
    return None


def _suspects(
    traced: TracedNetwork, removed: Mask, report: Report, level: int
) -> Iterator[tuple[nn.Module, set[tuple[int, int]]]]:
    """Yields (module `level` steps above a failure, (old width, new width) of what is around it)."""
    for failure in report.failures:
        yield from _upwards(traced, failure.entry.where, level, failure.widths)
    if report.error is not None:
        paths = {module: path for path, module in traced.model.named_modules()}
        where = paths.get(report.culprit, report.where)
        widths = _widths_of(traced, removed, where)
        for failure in report.near:
            widths |= failure.widths
        yield from _upwards(traced, where, level, widths)


def _upwards(
    traced: TracedNetwork, path: str, level: int, widths: set[tuple[int, int]]
) -> Iterator[tuple[nn.Module, set[tuple[int, int]]]]:
    parts = path.split(".") if path else []
    if level <= len(parts) and widths:
        yield traced.model.get_submodule(".".join(parts[: len(parts) - level])), widths


def _widths_of(traced: TracedNetwork, removed: Mask, path: str) -> set[tuple[int, int]]:
    """Returns (old, new) width of the dimensions of a module's tensors, for errors that no operation explains."""
    found = set()
    for dimension in traced.structure.dimensions:
        labels = traced.structure.labels_of(dimension)
        gone = int(removed[labels].sum())
        if gone and dimension.name.startswith(path):
            found.add((len(labels), len(labels) - gone))
    return found


def blamed(traced: TracedNetwork, failures: list[Failure]) -> np.ndarray:
    """Returns the nodes around failures; whole groups, since what fails for one channel fails for its neighbours."""
    structure = traced.structure
    rows = [structure.node_of_label[failure.labels] for failure in failures]
    nodes = np.unique(np.concatenate(rows)) if rows else np.empty(0, np.int64)
    groups = np.unique(structure.group_of_node[nodes[nodes >= 0]])
    return np.flatnonzero(np.isin(structure.group_of_node, groups))


def first_message(report: Report) -> tuple[str, str, str]:
    """Returns (operation, module path, what went wrong) of what failed first."""
    if report.failures:
        failure = report.failures[0]
        return failure.entry.name, failure.entry.where, _told(failure)
    message = (str(report.error).splitlines() or [""])[0]
    return "the code", report.where, f"code that fails with fewer channels: {type(report.error).__name__}: {message}"


def _told(failure: Failure) -> str:
    """Returns what an operation does not go along with: the sizes that its code asks for, or what torch said."""
    entry = failure.entry
    word = _TAKES_SIZES.get(entry.name.removeprefix("aten."))
    if word is None:
        return f"code that fails with fewer channels: {failure.message}"
    where = f"module {entry.where}" if entry.where else "the network"
    sizes = [str(list(shape)) for shape, _, _ in entry.outs[:_MOST_SIZES]]
    if len(entry.outs) > _MOST_SIZES:
        sizes.append("...")
    return f"hard-coded width in {where}: {word} {', '.join(sizes)}"
