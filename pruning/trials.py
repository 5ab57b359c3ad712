"""Trial removals: what the network's own code does not let go is found before anybody asks for it."""

from __future__ import annotations

import numpy as np

from pruning.fitting import blamed, first_message, fit
from pruning.observer import Observer
from pruning.rehearsal import Failure
from pruning.structure import Dimension, Structure

_MOST_TRIALS = 20


def try_out(seen: Observer) -> None:
    """Rehearses the removal of half of every group and pins what cannot go."""
    structure = seen.structure
    for _ in range(_MOST_TRIALS):
        nodes = half(structure)
        if not len(nodes):
            return
        result = fit(seen, structure.removed_labels(nodes))
        if result.passed:
            _note_numbers(seen, result.report.numbers)
            return
        if _tie_square(seen, result.report.failures):
            continue
        stay = blamed(seen, result.report.failures)
        stay = stay if len(stay) else culprits(seen, nodes)
        _pin(structure, stay, *first_message(result))
    _pin(structure, np.arange(structure.count), "", "", "no trial removal went through")


def _pin(structure: Structure, nodes: np.ndarray, operation: str, module: str, message: str) -> None:
    whole = np.flatnonzero(np.isin(structure.group_of_node, structure.group_of_node[nodes]))
    rows = [structure.labels_of_node(node) for node in whole]
    structure.pin(rows, operation, module, f"the code does not go along: {message}")
    structure.assemble()


def half(structure: Structure) -> np.ndarray:
    """Returns half of each group's nodes, at random, so that no regular pattern hides a mistake."""
    order = np.random.default_rng(0).permutation(structure.count)
    order = order[np.argsort(structure.group_of_node[order], kind="stable")]
    ends = np.searchsorted(structure.group_of_node[order], np.arange(structure.group_count + 1))
    parts = [order[start : start + (end - start) // 2] for start, end in zip(ends[:-1], ends[1:], strict=True)]
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def culprits(seen: Observer, nodes: np.ndarray) -> np.ndarray:
    """Returns the nodes of a choice without which it passes, found by halving its groups."""
    structure, good, bad = seen.structure, [], []
    group = structure.group_of_node[nodes]

    def search(groups: list[int]) -> None:
        if fit(seen, structure.removed_labels(nodes[np.isin(group, good + groups)])).passed:
            good.extend(groups)
        elif len(groups) == 1:
            bad.extend(groups)
        else:
            search(groups[: len(groups) // 2])
            search(groups[len(groups) // 2 :])

    search(np.unique(group).tolist())
    return nodes[np.isin(group, bad)]


def _tie_square(seen: Observer, failures: list[Failure]) -> bool:
    """Couples the rows of projections to their own input where code takes an inner width from the embedding.

    `qkv.view(b, n, 3, heads, x.shape[-1] // heads)` shrinks with x alone: rows and columns must go together.
    Returns whether that makes fewer operations fail.
    """
    structure, removed = seen.structure, np.zeros(seen.structure.total, dtype=bool)
    for failure in failures:
        removed[failure.labels] = True
    before = len(structure.facts.ties)
    for rows, columns in _square_weights(seen, {failure.entry.where for failure in failures}):
        apart = not np.array_equal(structure.component[rows[: len(columns)]], structure.component[columns])
        if removed[rows].any() and apart:
            place = structure.facts.place("code that takes one width from another", "")
            structure.facts.ties += [(part, columns, place) for part in rows.reshape(-1, len(columns))]
    if len(structure.facts.ties) == before:
        return False
    structure.assemble()
    report = fit(seen, structure.removed_labels(half(structure))).report
    if report.error is None and len(report.failures) < len(failures):
        return True
    del structure.facts.ties[before:]
    structure.assemble()
    return False


def _square_weights(seen: Observer, modules: set[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns (row labels, column labels) of matrices in these modules with one, two, three ... rows per column."""
    sides: dict[str, dict[int, Dimension]] = {}
    for dimension in seen.structure.dimensions:
        if any(dimension.name.startswith(f"{module}.") or not module for module in modules):
            sides.setdefault(dimension.name, {})[dimension.dim] = dimension
    pairs = [(dims[0], dims[1]) for name, dims in sides.items() if set(dims) == {0, 1} and seen.tensors[name].dim() == 2]
    return [(seen.structure.labels_of(rows), seen.structure.labels_of(columns))
            for rows, columns in pairs if rows.size % columns.size == 0]  # fmt: skip


def _note_numbers(seen: Observer, changed: list[Failure]) -> None:
    """A number that depends on a width (1 / sqrt(width)) changes what the network computes."""
    structure = seen.structure
    for failure in changed:
        place = structure.facts.place(failure.entry.name, failure.entry.where)
        why = f"a number depends on the width: {failure.message}"
        rows = [structure.labels_of_node(node) for node in blamed(seen, [failure])]
        structure.facts.inexact += [(labels, place, why) for labels in rows]
    if changed:
        structure.assemble()
