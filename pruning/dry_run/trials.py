"""Trial removals: what the network's own code does not let go is found before anybody asks for it."""

from __future__ import annotations

import numpy as np

from pruning.dry_run.attributes import Adaptation, adapt_attributes, badness, blamed, first_message, plain
from pruning.dry_run.dry_run import Failure, Report
from pruning.dry_run.rescale import take_up
from pruning.trace.components import Dimension, Structure
from pruning.trace.traced import TracedNetwork

_MOST_TRIALS = 20

_TAKES_SIZES = frozenset(
    f"aten.{name}" for name in ("view", "_unsafe_view", "expand", "repeat", "new_zeros", "zeros", "split")
)

_GOLDEN = (5**0.5 - 1) / 2


def try_out(traced: TracedNetwork) -> None:
    """Rehearses the removal of some nodes of every group and pins what cannot go."""
    structure = traced.structure
    for _ in range(_MOST_TRIALS):
        nodes = sample_nodes(structure)
        if not len(nodes):
            return
        removed = structure.removed_labels(nodes)
        result = plain(traced, removed)
        if not result.passed:
            if _tie_square(traced, result.report):
                continue
            first, result = result.report, adapt_attributes(traced, removed)
            if not result.passed and (_tie_shared(traced, result) or _tie_compared(traced, first)):
                continue
        if result.passed:
            _note_numbers(traced, result.report.numbers)
            return
        _pin(structure, culprits(traced, nodes, result.report), *first_message(result.report))
    _pin(structure, np.arange(structure.count), "", "", "no trial removal went through")


def _pin(structure: Structure, nodes: np.ndarray, operation: str, module: str, message: str) -> None:
    whole = np.flatnonzero(np.isin(structure.group_of_node, structure.group_of_node[nodes]))
    rows = [structure.labels_of_node(int(node)) for node in whole]
    structure.pin(rows, operation, module, message)
    structure.assemble()


def sample_nodes(structure: Structure, shift: int = 0) -> np.ndarray:
    """Returns nodes of every group, at random, and of each group of a size another number.

    No regular pattern then hides a mistake, and no two widths stay equal by luck where code confuses them. Another
    shift takes other numbers.
    """
    random = np.random.default_rng(0)
    order = random.permutation(structure.count)
    order = order[np.argsort(structure.group_of_node[order], kind="stable")]
    ends = np.searchsorted(structure.group_of_node[order], np.arange(structure.group_count + 1))
    parts, taken = [np.empty(0, np.int64)], set()
    for turn, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        size = int(end - start)
        share = 0.25 + 0.5 * ((turn + shift) * _GOLDEN % 1)  # never the same share twice
        wanted = [round(share * size) + step for step in (0, 1, -1, 2, -2, 3, -3)]
        counts = [count for count in wanted if 0 < count < size]
        count = next((count for count in counts if (size, count) not in taken), counts[0] if counts else 0)
        taken.add((size, count))
        parts.append(order[start : start + count])
    return np.sort(np.concatenate(parts))


def culprits(traced: TracedNetwork, nodes: np.ndarray, report: Report) -> np.ndarray:
    """Returns those nodes of a choice that are in the way: around what failed, or else found by halving."""
    for failures in (report.failures, report.near[1:2], report.near):
        stay = np.intersect1d(nodes, blamed(traced, failures))
        if len(stay):
            return stay
    within = traced.structure.nodes_in(_labels_within(traced, {failure.entry.where for failure in report.failures}))
    stay = np.intersect1d(nodes, within)
    return stay if len(stay) else _bisect(traced, nodes)


def _labels_within(traced: TracedNetwork, modules: set[str]) -> np.ndarray:
    """Returns the labels of everything that operations in these modules read."""
    rows = [labels for entries in traced.runs.values() for entry in entries if entry.where in modules
            for labels in entry.inputs]  # fmt: skip
    return np.unique(np.concatenate([np.empty(0, np.int64), *rows]))


def _bisect(traced: TracedNetwork, nodes: np.ndarray) -> np.ndarray:
    structure = traced.structure
    good: list[int] = []
    bad: list[int] = []
    group = structure.group_of_node[nodes]

    def search(groups: list[int]) -> None:
        if adapt_attributes(traced, structure.removed_labels(nodes[np.isin(group, good + groups)])).passed:
            good.extend(groups)
        elif len(groups) == 1:
            bad.extend(groups)
        else:
            search(groups[: len(groups) // 2])
            search(groups[len(groups) // 2 :])

    search(np.unique(group).tolist())
    return nodes[np.isin(group, bad)]


def _tie_square(traced: TracedNetwork, report: Report) -> bool:
    """Couples the rows of projections to their own input where code takes an inner width from the embedding.

    `qkv.view(b, n, 3, heads, x.shape[-1] // heads)` shrinks with x alone: rows and columns must go together.
    Returns whether that makes fewer operations fail.
    """
    modules = {failure.entry.where for failure in report.failures + report.near}
    ties = [(part, columns) for rows, columns in _square_weights(traced, modules)
            if _could_be_one(traced.structure, rows[: len(columns)], columns) and _free(traced.structure, rows)
            for part in rows.reshape(-1, len(columns))]  # fmt: skip
    return bool(ties) and _helps(traced, ties, report)


def _tie_compared(traced: TracedNetwork, report: Report) -> bool:
    """Couples two dimensions of one width where code compares them, or takes one from the other's tensor.

    `if x.shape != skip.shape: x = resize(x)` runs as before, and `gate.view(b, x.shape[1], 1, 1)` fits, only if both
    shrink alike. Returns whether that makes the network run further, or fewer operations fail.
    """
    around = report.failures[:1] or report.near
    rows = [labels for failure in around for labels in failure.entry.touched]
    entries = next(entries for training, entries in traced.runs.items() if not around or around[0].training == training)
    earlier = [labels for entry in entries[: around[0].index if around else 0][::-1] for labels in entry.touched]
    tried: set[bytes] = set()
    for one in rows:
        for other in rows + earlier:
            key = traced.structure.component[np.concatenate([one, other])].tobytes()
            if key in tried or len(tried) >= _MOST_TRIALS or not _could_be_one(traced.structure, one, other):
                continue
            tried.add(key)
            if _helps(traced, [(one, other)], report):
                return True
    return False


def _free(structure: Structure, labels: np.ndarray) -> bool:
    return bool((structure.pinned_by[structure.component[labels]] < 0).all())


def _could_be_one(structure: Structure, one: np.ndarray, other: np.ndarray) -> bool:
    """Says whether two dimensions of the same width could be coupled and are not yet."""
    known = len(one) != len(other) or np.array_equal(structure.component[one], structure.component[other])
    return not known and _free(structure, one) and _free(structure, other)


def _helps(traced: TracedNetwork, ties: list[tuple[np.ndarray, np.ndarray]], report: Report) -> bool:
    """Couples dimensions if the network then goes along better than a report says, and says whether it does."""
    structure = traced.structure
    before, place = len(structure.facts.ties), structure.facts.place("code that takes one width from another", "")
    structure.facts.ties += [(one, other, place) for one, other in ties]
    structure.assemble()
    choices = (sample_nodes(structure, shift) for shift in (0, 1, 2))  # several, for one may go through by luck
    if all(badness(plain(traced, structure.removed_labels(nodes)).report) < badness(report) for nodes in choices):
        return True
    del structure.facts.ties[before:]
    structure.assemble()
    return False


def _tie_shared(traced: TracedNetwork, result: Adaptation) -> bool:
    """Couples dimensions that take their width from the same integer, such as queries and values from `head_dim`.

    Returns whether anything was coupled that was not before.
    """
    structure = traced.structure
    before = len(structure.facts.ties)
    failing = {failure.entry.where for failure in result.report.failures}
    for where in failing:
        integers = {value for value in vars(traced.model.get_submodule(where)).values() if type(value) is int}
        first: dict[int, np.ndarray] = {}
        for entry in (entry for entries in traced.runs.values() for entry in entries):
            if entry.where != where or entry.name not in _TAKES_SIZES:
                continue
            for labels in (axis.labels for _, _, axes in entry.outs for axis in axes if axis is not None):
                width = int(structure.alive[labels].sum())
                if width not in integers or not _free(structure, labels) or width != len(labels):
                    continue
                one = first.setdefault(width, labels)
                if not np.array_equal(structure.component[one], structure.component[labels]):
                    place = structure.facts.place("an integer that the module keeps", where)
                    structure.facts.ties.append((one, labels, place))
    if len(structure.facts.ties) == before:
        return False
    structure.assemble()
    return True


def _square_weights(traced: TracedNetwork, modules: set[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns (row labels, column labels) of matrices in these modules with one to four rows per column."""
    sides: dict[str, dict[int, Dimension]] = {}
    for dimension in traced.structure.dimensions:
        if any(dimension.name.startswith(f"{module}.") or not module for module in modules):
            sides.setdefault(dimension.name, {})[dimension.dim] = dimension
    pairs = [
        (dims[0], dims[1]) for name, dims in sides.items() if set(dims) == {0, 1} and traced.tensors[name].dim() == 2
    ]
    return [(traced.structure.labels_of(rows), traced.structure.labels_of(columns))
            for rows, columns in pairs if rows.size in [times * columns.size for times in (1, 2, 3, 4)]]  # fmt: skip


def _note_numbers(traced: TracedNetwork, changed: list[Failure]) -> None:
    """A number that depends on a width (1 / sqrt(width)) changes what the network computes."""
    structure = traced.structure
    _, changed = take_up(traced.structure, changed, traced.row_uses)
    for failure in changed:
        place = structure.facts.place(failure.entry.name, failure.entry.where)
        why = "a number depends on the width"
        rows = [structure.labels_of_node(node) for node in blamed(traced, [failure])]
        structure.facts.inexact += [(labels, place, why) for labels in rows]
    if changed:
        structure.assemble()
