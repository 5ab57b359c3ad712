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
    traced = TracedNetwork(model, example_inputs)
    tie_attention(traced)
    traced.structure.assemble()
    try_out(traced)
    removed = _removed(traced, shapes)
    outside = list(_cut_outside(traced, removed))
    _check_single_answer(traced, removed)
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


def _check_single_answer(traced: TracedNetwork, removed: Mask) -> None:
    """Refuses shapes from which the code's integers do not follow."""
    for equation in solved(traced, removed).chosen:
        rows = [leaf.labels for side in (equation.one, equation.other) for leaf in leaves(side)
                if isinstance(leaf, Width)]  # fmt: skip
        if any(removed[row].any() for row in rows):
            where = equation.where or "the network"
            raise UsageError(f"The shapes leave several answers for {equation.what} in {where}: {SAVE_EXTRAS}.")
    for split in traced.splits:
        left = int((~removed[split.table]).sum())
        if left == split.table.size or _is_known_elsewhere(traced, split):
            continue
        widths = {sizes[split.chosen] for sizes in _factors(left, split)}
        if len(widths) > 1:
            told = " or ".join(str(width) for width in sorted(widths)[-3:])
            where = split.where or "the network"
            raise UsageError(
                f"The channels left in {where} may be heads of {told}; the shapes do not tell: {SAVE_EXTRAS}."
            )


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
    """Says whether a tensor is as wide as one head, such as the norm of queries: its shape then tells that width."""
    structure = traced.structure
    nodes = np.unique(structure.node_of_label[split.table])
    for dimension in structure.dimensions:
        own = structure.node_of_label[structure.labels_of(dimension)]
        counts = np.bincount(own[np.isin(own, nodes[nodes >= 0])])
        if (counts == 1).any() and counts.max() == 1:
            return True
    return False
