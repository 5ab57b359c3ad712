"""What a cut must have changed, found from the shapes that it left: which nodes went, and what modules keep since.

A dense network and the smaller shapes of its pruned copy say how many slices each dimension lost. Nodes that look the
same to every dimension, and to every size that the code reads, are counted together; the numbers follow from the shapes
one by one, and the integers of the code from them as after any cut (pruning/dry_run/solve.py). A dry run proves the
result. Where the shapes have more than one answer, none is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
from torch import Tensor, nn

from pruning.dry_run.attributes import adapt_attributes, first_message
from pruning.dry_run.couple import solved, tie_attention
from pruning.dry_run.trials import try_out
from pruning.errors import UsageError
from pruning.modules.attributes import Attribute, Shape
from pruning.trace.components import Dimension, Mask
from pruning.trace.labels import Labels, Split
from pruning.trace.origins import Width, leaves
from pruning.trace.traced import TracedNetwork

SAVE_EXTRAS = "save extras_of(model) with the state dict"


def changes_behind(model: nn.Module, shapes: Mapping[int, Shape], example_inputs: Any) -> list[Attribute]:
    """Returns what modules must keep once a dense network has the shapes that a cut left of it.

    Args:
        model: the dense network.
        shapes: id of a parameter or buffer -> its shape in the file, for those that shrank.
        example_inputs: as for `DependencyGraph`.

    Raises:
        UsageError: if no cut of this network leaves these shapes, or several do that differ in more than shapes.
    """
    ways = [_Way(model, shapes, example_inputs, by_heads=False)]
    if ways[0].removed is None or ways[0].open_splits():
        # Heads may have gone as a whole. Tensors with an entry per head, such as biases, then tell how many are left.
        ways.append(_Way(model, shapes, example_inputs, by_heads=True))
    possible = [way for way in ways if way.removed is not None]
    if not possible:
        raise UsageError(ways[0].why)
    return possible[0].answer(ways)


class _Way:
    """One way in which a cut may have left the shapes: attention got narrower, or lost whole heads.

    Args:
        model: the dense network.
        shapes: id of a parameter or buffer -> its shape in the file, for those that shrank.
        example_inputs: as for `DependencyGraph`.
        by_heads: whether heads go as a whole.
    """

    def __init__(self, model: nn.Module, shapes: Mapping[int, Shape], example_inputs: Any, *, by_heads: bool) -> None:
        self.traced = traced = TracedNetwork(model, example_inputs, by_heads=by_heads)
        tie_attention(traced)
        traced.structure.assemble()
        try_out(traced)
        self.removed: Mask | None = None
        self.why = ""
        try:
            self.removed = _removed(traced, shapes)
        except UsageError as error:
            self.why = str(error)

    def open_splits(self) -> list[tuple[Split, int]]:
        """Returns where several sizes have the product that is left, and that product."""
        removed = self.removed
        if removed is None:
            return []
        found = []
        for split in self.traced.splits:
            left = int((~removed[split.table]).sum())
            if left < split.table.size and len(list(_factors(left, split))) > 1:
                found.append((split, left))
        return found

    def answer(self, ways: list[_Way]) -> list[Attribute]:
        """Returns what modules must keep, proven by a dry run; `ways` tell what heads and widths are known."""
        traced, removed = self.traced, self.removed
        assert removed is not None
        outside = list(_cut_outside(traced, removed))
        _check_equations(traced, removed)
        for split, left in self.open_splits():
            if not any(_is_known_elsewhere(way.traced, split) for way in ways):
                sizes = sorted({sizes[split.chosen] for sizes in _factors(left, split)})
                told = " or ".join(str(size) for size in sizes[-3:])
                what = "be {} heads" if traced.by_heads else "be heads of {}"
                where = split.where or "the network"
                raise UsageError(
                    f"The channels left in {where} may {what.format(told)}; the shapes do not tell: {SAVE_EXTRAS}."
                )
        result = adapt_attributes(traced, removed)
        if not result.passed:
            operation, where, message = first_message(result.report)
            place = f"{operation} in {where or 'the network'}"
            raise UsageError(f"The network does not run with the file's shapes: {message} ({place}); {SAVE_EXTRAS}.")
        return result.attributes + outside


def _removed(traced: TracedNetwork, shapes: Mapping[int, Shape]) -> Mask:
    """Returns which labels went, up to the choice among nodes that look alike."""
    structure = traced.structure
    kinds = _alike(traced)
    losses = dict(_losses(traced, shapes))
    gone = _count_by_kind(traced, kinds, losses)
    chosen = [nodes[: gone[kind]] for kind, nodes in enumerate(kinds)]
    return structure.removed_labels(np.concatenate([np.empty(0, np.int64), *chosen]))


def _alike(traced: TracedNetwork) -> list[Labels]:
    """Returns the nodes in lots that every dimension, and every size that the code reads, counts alike."""
    structure = traced.structure
    rows = [structure.labels_of(dimension) for dimension in structure.dimensions]
    for equation in traced.equations:
        for leaf in (*leaves(equation.one), *leaves(equation.other)):
            if isinstance(leaf, Width):
                rows.append(leaf.labels)
    # Sums of random numbers, one per row: two nodes have the same sum only if the same rows count them as often.
    random = np.random.default_rng(0)
    marks = random.integers(1, 2**62, len(rows), dtype=np.int64)
    signature = np.zeros(structure.count, dtype=np.int64)
    for row, mark in zip(rows, marks, strict=True):
        nodes = structure.node_of_label[row]
        np.add.at(signature, nodes[nodes >= 0], mark)
    _, kind = np.unique(signature, return_inverse=True)
    return [np.flatnonzero(kind == number) for number in range(kind.max() + 1 if len(kind) else 0)]


def _losses(traced: TracedNetwork, shapes: Mapping[int, Shape]) -> Iterator[tuple[Dimension, int]]:
    """Yields how many slices each dimension lost, of those that the file speaks of."""
    for dimension in traced.structure.dimensions:
        tensor = traced.tensors[dimension.name]
        if _is_in_file(traced, dimension.name):
            there = shapes.get(id(tensor), tuple(tensor.shape))
            yield dimension, tensor.shape[dimension.dim] - there[dimension.dim]


def _is_in_file(traced: TracedNetwork, name: str) -> bool:
    path, _, own_name = name.rpartition(".")
    outside = traced.model.get_submodule(path)._non_persistent_buffers_set
    return name not in traced.tables and own_name not in outside


def _count_by_kind(traced: TracedNetwork, kinds: list[Labels], losses: Mapping[Dimension, int]) -> list[int]:
    """Returns how many nodes of each lot went, solved from one dimension after the other.

    Raises:
        UsageError: if there is no solution, or more than one.
    """
    structure = traced.structure
    kind_of_node = np.empty(structure.count, dtype=np.int64)
    for kind, nodes in enumerate(kinds):
        kind_of_node[nodes] = kind
    # A dimension loses, of each lot, the number that went times how often one of its nodes stands in it.
    shares: dict[Dimension, dict[int, int]] = {}
    for dimension in losses:
        nodes = structure.node_of_label[structure.labels_of(dimension)]
        counts = np.bincount(kind_of_node[nodes[nodes >= 0]], minlength=len(kinds))
        shares[dimension] = {kind: int(counts[kind]) // len(kinds[kind]) for kind in np.flatnonzero(counts).tolist()}
    gone: dict[int, int] = {}
    waiting = list(losses)
    while waiting:
        left = [dimension for dimension in waiting if not _settle(dimension, losses[dimension], shares, kinds, gone)]
        if len(left) == len(waiting):
            first = left[0]
            raise UsageError(
                f"The shapes do not tell what {first.name} lost along dimension {first.dim}: {SAVE_EXTRAS}."
            )
        waiting = left
    return [gone.get(kind, 0) for kind in range(len(kinds))]


def _settle(
    dimension: Dimension, loss: int, shares: Mapping[Dimension, Mapping[int, int]], kinds: list[Labels],
    gone: dict[int, int],
) -> bool:  # fmt: skip
    """Solves one dimension for the only lot that is not known yet, or checks it; False if it has to wait."""
    share = shares[dimension]
    unknown = [kind for kind in share if kind not in gone]
    rest = loss - sum(times * gone[kind] for kind, times in share.items() if kind in gone)
    most = sum(share[kind] * len(kinds[kind]) for kind in unknown)
    fits = 0 <= rest <= most
    if fits and rest in (0, most):
        gone.update({kind: len(kinds[kind]) if rest else 0 for kind in unknown})
        return True
    if fits and len(unknown) > 1:
        return False
    if not fits or rest % share[unknown[0]]:
        raise UsageError(
            f"{dimension.name} lost {loss} of {dimension.size} along dimension {dimension.dim}, which no cut does that "
            f"follows from the shapes; {SAVE_EXTRAS}, or call this with the example inputs that it was pruned with."
        )
    gone[unknown[0]] = rest // share[unknown[0]]
    return True


def _cut_outside(traced: TracedNetwork, removed: Mask) -> Iterator[Attribute]:
    """Yields what is left of buffers outside the state dict, which are cut by places that shapes do not tell.

    Raises:
        UsageError: if the values at these places differ.
    """
    structure = traced.structure
    left: dict[str, Tensor] = {}
    for dimension in structure.dimensions:
        gone = removed[structure.labels_of(dimension)]
        if _is_in_file(traced, dimension.name) or not gone.any():
            continue
        tensor = left.get(dimension.name, traced.tensors[dimension.name].detach())
        first = tensor.narrow(dimension.dim, 0, 1)
        is_in_container = dimension.name.endswith("]")
        if is_in_container or not bool((tensor == first).all()):
            raise UsageError(f"{dimension.name} was cut and is not in the state dict: {SAVE_EXTRAS}.")
        left[dimension.name] = tensor.narrow(dimension.dim, 0, len(gone) - int(gone.sum()))
    for name, tensor in left.items():
        path, _, own_name = name.rpartition(".")
        yield traced.model.get_submodule(path), own_name, tensor.clone()


def _check_equations(traced: TracedNetwork, removed: Mask) -> None:
    """Refuses shapes where several of the code's integers could have taken up a change."""
    for equation in solved(traced, removed).chosen:
        rows = [leaf.labels for side in (equation.one, equation.other) for leaf in leaves(side)
                if isinstance(leaf, Width)]  # fmt: skip
        if any(removed[row].any() for row in rows):
            where = equation.where or "the network"
            raise UsageError(f"The shapes leave several answers for {equation.what} in {where}: {SAVE_EXTRAS}.")


def _factors(count: int, split: Split) -> Iterator[tuple[int, ...]]:
    """Yields the sizes of this product that the several dimensions may have now: numbers in the code stay."""
    options = []
    for place, size in enumerate(split.table.shape):
        fewer = [divisor for divisor in range(1, size + 1) if count % divisor == 0]
        options.append(fewer if place in split.may_change else [size])
    for sizes in product(*options):
        if math.prod(sizes) == count:
            yield sizes


def _is_known_elsewhere(traced: TracedNetwork, split: Split) -> bool:
    """Says whether a tensor in the file has one index per place in a head, or per head: its shape tells their number.

    Such are norms of queries, and biases by head.
    """
    structure = traced.structure
    labels = split.table[split.table < structure.slice_labels]  # those beyond are one run's own
    nodes = np.unique(structure.node_of_label[labels])
    for dimension in structure.dimensions:
        if not _is_in_file(traced, dimension.name):
            continue
        own = structure.node_of_label[structure.labels_of(dimension)]
        counts = np.bincount(own[np.isin(own, nodes[nodes >= 0])])
        if (counts == 1).any() and counts.max() == 1:
            return True
    return False
