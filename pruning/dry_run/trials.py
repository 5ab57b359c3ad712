"""One trial removal: what the network's own code does not let go is found before anybody asks for it."""

from __future__ import annotations

import numpy as np

from pruning.dry_run.attributes import adapt_attributes, blamed, first_message
from pruning.dry_run.couple import couple_sizes
from pruning.dry_run.dry_run import Failure, Report
from pruning.dry_run.rescale import take_up
from pruning.trace.components import Structure
from pruning.trace.traced import TracedNetwork

_MOST_TRIALS = 20  # each pins what it found in the way; few networks need more than one

_GOLDEN = (5**0.5 - 1) / 2


def try_out(traced: TracedNetwork) -> None:
    """Couples what the code computes one from the other, and pins what a sampled removal shows cannot go."""
    structure = traced.structure
    if not traced.handles_sizes and not traced.equations:
        return  # layers alone: nothing in the code could tell how wide they are
    couple_sizes(traced)
    for _ in range(_MOST_TRIALS):
        nodes = sample_nodes(structure)
        if not len(nodes):
            return
        result = adapt_attributes(traced, structure.removed_labels(nodes))
        if result.passed:
            _note_numbers(traced, result.report.numbers)
            return
        _pin(structure, culprits(traced, nodes, result.report), *first_message(result.report))
        couple_sizes(traced)
    _pin(structure, np.arange(structure.count), "", "", "no trial removal went through")


def _pin(structure: Structure, nodes: np.ndarray, operation: str, module: str, message: str) -> None:
    whole = np.flatnonzero(np.isin(structure.group_of_node, structure.group_of_node[nodes]))
    rows = [structure.labels_of_node(int(node)) for node in whole]
    structure.pin(rows, operation, module, message)
    structure.assemble()


def sample_nodes(structure: Structure) -> np.ndarray:
    """Returns nodes of every group, at random, and of each group of a size another number.

    No regular pattern then hides a mistake, and no two widths stay equal by luck where code confuses them.
    """
    random = np.random.default_rng(0)
    order = random.permutation(structure.count)
    order = _ends_first(structure, order)
    order = order[np.argsort(structure.group_of_node[order], kind="stable")]
    ends = np.searchsorted(structure.group_of_node[order], np.arange(structure.group_count + 1))
    multiples = structure.multiples()
    parts, taken = [np.empty(0, np.int64)], set()
    for turn, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        size = int(end - start)
        share = 0.25 + 0.5 * (turn * _GOLDEN % 1)  # never the same share twice
        multiple = int(multiples[turn])
        middle = round(share * size / multiple)
        wanted = [(middle + step) * multiple for step in (0, 1, -1, 2, -2, 3, -3)]
        counts = [count for count in wanted if 0 < count < size]
        # torch often takes a dimension of one index for none; whether the code minds is seen when somebody asks for it.
        counts = [count for count in counts if count < size - 1] or counts
        count = next((count for count in counts if (size, count) not in taken), counts[0] if counts else 0)
        taken.add((size, count))
        parts.append(order[start : start + count])
    return np.sort(np.concatenate(parts))


def _ends_first(structure: Structure, order: np.ndarray) -> np.ndarray:
    """Puts the first and the last node of every group in front: a slice at a fixed place shows at one of them."""
    group = structure.group_of_node
    _, first = np.unique(group, return_index=True)
    _, last = np.unique(group[::-1], return_index=True)
    is_end = np.zeros(len(group), dtype=bool)
    is_end[first] = is_end[len(group) - 1 - last] = True
    return np.concatenate([order[is_end[order]], order[~is_end[order]]])


def culprits(traced: TracedNetwork, nodes: np.ndarray, report: Report) -> np.ndarray:
    """Returns those nodes of a choice that are in the way: around what failed, or all of them."""
    for failures in (report.failures, report.near[1:2], report.near):
        stay = np.intersect1d(nodes, blamed(traced, failures))
        if len(stay):
            return stay
    within = traced.structure.nodes_in(_labels_within(traced, {failure.entry.where for failure in report.failures}))
    stay = np.intersect1d(nodes, within)
    return stay if len(stay) else nodes


def _labels_within(traced: TracedNetwork, modules: set[str]) -> np.ndarray:
    """Returns the labels of everything that operations in these modules read."""
    rows = [labels for entries in traced.runs.values() for entry in entries if entry.where in modules
            for labels in entry.inputs]  # fmt: skip
    return np.unique(np.concatenate([np.empty(0, np.int64), *rows]))


def _note_numbers(traced: TracedNetwork, changed: list[Failure]) -> None:
    """A number that depends on a width (1 / sqrt(width)) changes what the network computes."""
    structure = traced.structure
    _, changed = take_up(traced.structure, changed, traced.row_uses)
    for failure in changed:
        place = structure.facts.place(failure.entry.name, failure.entry.where)
        rows = [structure.labels_of_node(node) for node in blamed(traced, [failure])]
        structure.facts.inexact += [(labels, place, failure.why) for labels in rows]
    if changed:
        structure.assemble()
