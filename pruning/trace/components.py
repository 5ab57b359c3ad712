"""Labels joined into nodes: arrays only, no network in sight.

Every index of every dimension of every parameter and buffer has a label. `Structure` takes what a trace collected
(ties, pins, losses, roles), finds the connected components, and keeps for every label which node it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pruning.trace.labels import Labels

if TYPE_CHECKING:
    import networkx as nx

Mask = NDArray[np.bool_]

_NOTHING: Labels = np.empty(0, np.int64)

_NEVER_USED = "no operation was seen to use its values"

_WHOLE_LAYER = "without it a layer would be empty"


class Dimension(NamedTuple):
    """One dimension of one parameter or buffer: labels start .. start + size - 1."""

    name: str
    dim: int
    start: int
    size: int
    trained: bool


@dataclass
class Facts:
    """What rules said, with the place where they said it: (labels, ..., index into `places`)."""

    ties: list[tuple[Labels, Labels, int]] = field(default_factory=list)
    pins: list[tuple[Labels, int, str]] = field(default_factory=list)
    inexact: list[tuple[Labels, int, str]] = field(default_factory=list)
    aligned: list[tuple[Labels, int, int]] = field(default_factory=list)  # (labels, place, of what a multiple stays)
    consumed: list[Labels] = field(default_factory=list)
    roles: list[tuple[Labels, int]] = field(default_factory=list)
    places: list[tuple[str, str]] = field(default_factory=lambda: [("", "")])  # (operation, module path)

    def place(self, operation: str, module: str) -> int:
        """Returns the index of a new place."""
        self.places.append((operation, module))
        return len(self.places) - 1

    def told(self, fact: tuple[Labels, int, str]) -> str:
        """Returns what a pin or a loss says, and where it was said."""
        _, place, why = fact
        operation, module = self.places[place]
        return f"{why} ({operation or 'the graph'} in {module or 'the network'})"


class Structure:
    """Nodes, found again whenever a fact is added.

    Args:
        dimensions: all dimensions of all parameters and buffers, in the order of their labels.
        total: number of labels in all, those of no parameter included.
    """

    def __init__(self, dimensions: list[Dimension], total: int) -> None:
        self.dimensions = dimensions
        self.starts = np.array([dimension.start for dimension in dimensions], dtype=np.int64)
        self.sizes = np.array([dimension.size for dimension in dimensions], dtype=np.int64)
        self.slice_labels = int(self.sizes.sum())  # labels below are slices, those from here on values in flight
        self.total = total
        self.facts = Facts()
        self.generation = 0  # goes up whenever nodes are numbered anew
        self.alive: Mask = np.ones(total, dtype=bool)
        self.bias_of = np.full(self.slice_labels, -1, dtype=np.int64)  # row of a linear weight -> entry of its bias
        self._owner = np.repeat(np.arange(len(dimensions)), self.sizes)

    # -- components ------------------------------------------------------------------------------------------------

    def assemble(self) -> None:
        """Joins what is tied and decides which components are nodes."""
        count, self.component = connected(self.facts.ties, self.total)

        self.roles = np.zeros(self.total, dtype=np.int8)
        for labels, role in self.facts.roles:
            self.roles[labels] |= role  # a shared weight may play several
        self.pinned_by = _first_fact(self.facts.pins, self.component, count)
        self.inexact_by = _first_fact(self.facts.inexact, self.component, count)
        self._pin_for(_NEVER_USED, self._unused(count))
        self._pin_for(_WHOLE_LAYER, self._whole_dimensions(count))
        self.renumber()

    def _pin_for(self, why: str, components: Mask) -> None:
        """Pins components, unless another reason holds them already."""
        self.facts.pins.append((_NOTHING, 0, why))
        free = self.pinned_by < 0
        self.pinned_by[components & free] = len(self.facts.pins) - 1

    def _unused(self, count: int) -> Mask:
        """Returns which components have values that no operation uses, or no trained parameter."""
        used = np.zeros(count, dtype=bool)
        for labels in self.facts.consumed:
            used[self.component[labels]] = True
        trained = np.zeros(count, dtype=bool)
        of_parameter = np.repeat([dimension.trained for dimension in self.dimensions], self.sizes)
        own = self.component[: self.slice_labels]
        trained[own[of_parameter]] = True
        return ~used | ~trained

    def _whole_dimensions(self, count: int) -> Mask:
        """Returns which components hold all slices of some dimension, so that it cannot lose them."""
        whole = np.zeros(count, dtype=bool)
        own = self.component[: self.slice_labels]
        if len(self.starts):
            lowest = np.minimum.reduceat(own, self.starts)
            highest = np.maximum.reduceat(own, self.starts)
            whole[lowest[lowest == highest]] = True
        return whole

    def renumber(self) -> None:
        """Numbers the nodes that are alive, in the order of their first slice."""
        self.generation += 1
        own = self.component[: self.slice_labels]
        alive = self.alive[: self.slice_labels]
        free = alive & (self.pinned_by[own] < 0)
        components, first = np.unique(own[free], return_index=True)
        order = np.argsort(first, kind="stable")
        self.components = components[order]  # node -> component

        node_of = np.full(len(self.pinned_by), -1, dtype=np.int64)
        node_of[self.components] = np.arange(self.count)
        self.node_of_component = node_of  # -1 where a component is pinned or gone
        self.node_of_label = np.where(self.alive, node_of[self.component], -1)
        self._find_members()
        self._find_groups()

    def _find_members(self) -> None:
        """Sorts slices by their node: those of node n are members[member_ends[n] : member_ends[n + 1]]."""
        node = self.node_of_label[: self.slice_labels]
        labels = np.flatnonzero(node >= 0)
        order = np.argsort(node[labels], kind="stable")
        self.members = labels[order]
        self.member_ends = np.searchsorted(node[self.members], np.arange(self.count + 1))

    def _find_groups(self) -> None:
        """Nodes that consist of slices of the same dimensions form a group, such as the channels of one layer."""
        if not self.count:
            self.group_of_node = _NOTHING
            self.group_count = 0
            return
        node, owner = self.node_of_label[self.members], self._owner[self.members]
        pairs = node * len(self.dimensions) + owner
        is_first = np.ones(len(pairs), dtype=bool)
        is_first[1:] = pairs[1:] != pairs[:-1]  # members are sorted, so equal pairs are neighbours
        node, owner = node[is_first], owner[is_first]

        # Sums of random numbers, one per dimension: two sets of dimensions have the same sum only by a miracle.
        random = np.random.default_rng(0)
        marks = random.integers(1, 2**62, len(self.dimensions), dtype=np.int64)
        signature = np.zeros(self.count, dtype=np.int64)
        np.add.at(signature, node, marks[owner])

        _, first, group = np.unique(signature, return_index=True, return_inverse=True)
        rank = np.empty(len(first), dtype=np.int64)
        rank[np.argsort(first)] = np.arange(len(first))  # groups in the order of their first node
        self.group_of_node = rank[group.reshape(-1)]
        self.group_count = len(first)

    # -- look-ups --------------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many nodes can be removed."""
        return len(self.components)

    def labels_of(self, dimension: Dimension) -> Labels:
        """Returns the labels of a dimension that are still there, in their order."""
        labels = np.arange(dimension.start, dimension.start + dimension.size)
        is_alive = self.alive[labels]
        return labels[is_alive]

    def labels_of_node(self, node: int) -> Labels:
        """Returns all slices of a node."""
        start, end = self.member_ends[node], self.member_ends[node + 1]
        return self.members[start:end]

    def owners(self, labels: Labels) -> Labels:
        """Returns the index of the dimension that each label belongs to."""
        return self._owner[labels]

    def nodes_in(self, labels: Labels) -> Labels:
        """Returns the nodes that these labels belong to, pinned ones left out."""
        nodes = np.unique(self.node_of_label[labels])
        return nodes[nodes >= 0]

    def removed_labels(self, nodes: Labels) -> Mask:
        """Returns which labels, of slices and of values in flight, go with these nodes."""
        chosen = np.zeros(len(self.pinned_by), dtype=bool)
        chosen[self.components[nodes]] = True
        return chosen[self.component] & self.alive

    def inexact_reason(self, node: int) -> str:
        """Returns why removing a node changes other values, "" if it does not."""
        fact = self.inexact_by[self.components[node]]
        if fact < 0:
            return ""
        return self.facts.told(self.facts.inexact[fact])

    def one_per_group(self, nodes: np.ndarray) -> np.ndarray:
        """Returns one node of each group that a choice touches."""
        groups = self.group_of_node[nodes]
        _, first = np.unique(groups, return_index=True)
        return nodes[first]

    def emptied(self, removed: Mask) -> list[Dimension]:
        """Returns the dimensions of which nothing would be left."""
        stays = self.alive & ~removed
        stays = stays[: self.slice_labels].astype(np.int64)
        left = np.add.reduceat(stays, self.starts)
        return [self.dimensions[place] for place in np.flatnonzero(left == 0)]

    def multiples(self) -> Labels:
        """Returns (groups,) how many nodes of each group go at a time, so that operations take the widths left."""
        found = np.ones(self.group_count, dtype=np.int64)
        for labels, _, multiple in self.facts.aligned:
            nodes, times = np.unique(self.node_of_label[labels], return_counts=True)
            of_nodes = nodes >= 0
            nodes, times = nodes[of_nodes], times[of_nodes]
            # A node that has several indices of the dimension shrinks it by as many.
            at_a_time = multiple // np.gcd(multiple, times)
            groups = self.group_of_node[nodes]
            np.lcm.at(found, groups, at_a_time)
        return found

    def misaligned(self, removed: Mask) -> str:
        """Returns which operation does not take the widths that are left, "" if all do."""
        stays = self.alive & ~removed
        for labels, place, multiple in self.facts.aligned:
            left = int(stays[labels].sum())
            if left % multiple and removed[labels].any():
                operation, module = self.facts.places[place]
                return (
                    f"{operation} in {module or 'the network'} takes widths that are multiples of {multiple}, and "
                    f"{left} would stay"
                )
        return ""

    def pin(self, labels: Iterable[Labels], operation: str, module: str, why: str) -> None:
        """Adds pins found after the run; call `assemble` when all are in."""
        place = self.facts.place(operation, module)
        self.facts.pins.extend((row, place, why) for row in labels)


def connected(ties: list[tuple[Labels, Labels, int]], total: int) -> tuple[int, Labels]:
    """Returns how many connected components there are, and (total,) the component of every label."""
    # Imported with the first graph: a program that builds none does not wait for it.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = _joined([one for one, _, _ in ties])
    others = _joined([other for _, other, _ in ties])
    weights = np.ones(len(ones), dtype=np.int8)
    graph = coo_array((weights, (ones, others)), shape=(total, total))
    count, component = connected_components(graph, directed=False)
    return count, component.astype(np.int64)


def _joined(rows: list[Labels]) -> Labels:
    return np.concatenate([_NOTHING, *rows])


def _first_fact(facts: list[tuple[Labels, int, str]], component: Labels, count: int) -> Labels:
    """Returns per component the index of the first fact that names one of its labels, -1 where none does."""
    rows = [labels for labels, _, _ in facts]
    lengths = np.array([len(labels) for labels in rows], dtype=np.int64)
    fact_of_label = np.repeat(np.arange(len(facts)), lengths)
    none = len(facts)
    first = np.full(count, none, dtype=np.int64)
    np.minimum.at(first, component[_joined(rows)], fact_of_label)
    first[first == none] = -1
    return first


class Couplings:
    """Says which operations tie dimensions to each other.

    Args:
        structure: as it is; look-ups are kept, so a structure that changes needs another object.
    """

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self._reasons: dict[tuple[Dimension, ...], dict[Dimension, str]] = {}

    def why(self, dimension: Dimension, seeds: tuple[Dimension, ...]) -> str:
        """Returns the last step on the way from the seeds to a dimension."""
        if seeds not in self._reasons:
            self._reasons[seeds] = self._walk(seeds)
        return self._reasons[seeds].get(dimension, "coupled")

    def _walk(self, seeds: tuple[Dimension, ...]) -> dict[Dimension, str]:
        """Returns how each dimension is reached from the seeds, the nearest first."""
        import networkx as nx

        found: dict[Dimension, str] = dict.fromkeys(seeds, "asked for")
        start = [seed for seed in seeds if seed in self.network]
        if not start:
            return found
        for parent, child in nx.edge_bfs(self.network, start):
            if child not in found:
                place = self.network.edges[parent, child]["place"]
                operation, module = self.structure.facts.places[place]
                found[child] = f"coupled to {parent.name} by {operation} in {module or 'the network'}"
        return found

    @cached_property
    def network(self) -> nx.Graph:
        """Dimensions as nodes, and the first operation that ties two of them as edges."""
        import networkx as nx  # only those who ask for a plan's reasons wait for it

        network = nx.Graph()
        for ones, others, place in self.structure.facts.ties:
            if not len(ones):
                continue
            one, other = self._dimension(ones), self._dimension(others)
            if one is None or other is None or one == other:
                continue
            if not network.has_edge(one, other):
                network.add_edge(one, other, place=place)
        return network

    def _dimension(self, labels: Labels) -> Dimension | None:
        """Returns whose labels these are, by the first of them; None for values in flight."""
        structure = self.structure
        if labels[0] >= structure.slice_labels:
            return None
        (owner,) = structure.owners(labels[:1])
        return structure.dimensions[owner]
