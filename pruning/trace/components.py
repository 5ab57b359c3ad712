"""Labels joined into nodes: arrays only, no network in sight.

Every index of every dimension of every parameter and buffer has a label. `Structure` takes what a trace collected
(ties, pins, losses, roles), finds the connected components, and keeps for every label which node it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pruning.trace.labels import Labels

Mask = NDArray[np.bool_]

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
    consumed: list[Labels] = field(default_factory=list)
    roles: list[tuple[Labels, int]] = field(default_factory=list)
    places: list[tuple[str, str]] = field(default_factory=lambda: [("", "")])

    def place(self, operation: str, module: str) -> int:
        """Returns the index of a new place."""
        self.places.append((operation, module))
        return len(self.places) - 1

    def told(self, fact: tuple[Labels, int, str]) -> str:
        """Returns what a pin or a loss says, and where it was said."""
        operation, module = self.places[fact[1]]
        return f"{fact[2]} ({operation or 'the graph'} in {module or 'the network'})"


def _first_fact(facts: list[tuple[Labels, int, str]], group_of: Labels, count: int) -> Labels:
    """Returns per component the index of the first fact that names one of its labels, -1 where none does."""
    first = np.full(count, len(facts), dtype=np.int64)
    if facts:
        which = np.repeat(np.arange(len(facts)), [len(labels) for labels, *_ in facts])
        np.minimum.at(first, group_of[np.concatenate([labels for labels, *_ in facts])], which)
    first[first == len(facts)] = -1
    return first


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
        self.slice_labels = int(self.sizes.sum())
        self.total = total
        self.facts = Facts()
        self.generation = 0  # goes up whenever nodes are numbered anew
        self.alive: Mask = np.ones(total, dtype=bool)
        self.bias_of = np.full(self.slice_labels, -1, dtype=np.int64)  # row of a linear weight -> entry of its bias
        self._owner = np.repeat(np.arange(len(dimensions)), self.sizes)

    # -- components ------------------------------------------------------------------------------------------------

    def assemble(self) -> None:
        """Joins what is tied and decides which components are nodes."""
        ends = [np.concatenate([tie[side] for tie in self.facts.ties] or [np.empty(0, np.int64)]) for side in (0, 1)]
        ones = np.ones(len(ends[0]), dtype=np.int8)
        graph = coo_array((ones, (ends[0], ends[1])), shape=(self.total, self.total))
        count, component = connected_components(graph, directed=False)
        self.component = component.astype(np.int64)
        self.roles = np.zeros(self.total, dtype=np.int8)
        for labels, role in self.facts.roles:
            self.roles[labels] |= role
        self.pinned_by = _first_fact(self.facts.pins, self.component, count)
        self.inexact_by = _first_fact(self.facts.inexact, self.component, count)
        self._pin_unusable(count)
        self.renumber()

    def _pin_unusable(self, count: int) -> None:
        """Pins components whose values nobody uses, and those that no layer can lose."""
        used = np.zeros(count, dtype=bool)
        for labels in self.facts.consumed:
            used[self.component[labels]] = True
        own = self.component[: self.slice_labels]
        trained = np.zeros(count, dtype=bool)
        trained[own[np.repeat([dimension.trained for dimension in self.dimensions], self.sizes)]] = True
        whole = np.zeros(count, dtype=bool)
        lowest = np.minimum.reduceat(own, self.starts) if len(self.starts) else own
        highest = np.maximum.reduceat(own, self.starts) if len(self.starts) else own
        whole[lowest[lowest == highest]] = True
        for chosen, why in ((~used | ~trained, _NEVER_USED), (whole, _WHOLE_LAYER)):
            self.facts.pins.append((np.empty(0, np.int64), 0, why))
            self.pinned_by[chosen & (self.pinned_by < 0)] = len(self.facts.pins) - 1

    def renumber(self) -> None:
        """Numbers the nodes that are alive, in the order of their first slice."""
        self.generation += 1
        own, alive = self.component[: self.slice_labels], self.alive[: self.slice_labels]
        free = alive & (self.pinned_by[own] < 0)
        components, first = np.unique(own[free], return_index=True)
        self.components = components[np.argsort(first, kind="stable")]
        node_of = np.full(len(self.pinned_by), -1, dtype=np.int64)
        node_of[self.components] = np.arange(len(self.components))
        self.node_of_component = node_of
        self.node_of_label = np.where(self.alive, node_of[self.component], -1)
        self._find_members()
        self._find_groups()

    def _find_members(self) -> None:
        own = self.node_of_label[: self.slice_labels]
        labels = np.flatnonzero(own >= 0)
        order = np.argsort(own[labels], kind="stable")
        self.members = labels[order]
        self.member_ends = np.searchsorted(own[self.members], np.arange(self.count + 1))

    def _find_groups(self) -> None:
        """Nodes that consist of slices of the same dimensions form a group, such as the channels of one layer."""
        own, owner = self.node_of_label[self.members], self._owner[self.members]
        pairs = own * len(self.dimensions) + owner  # in order already, for members are sorted
        pairs = pairs[np.concatenate([[True], pairs[1:] != pairs[:-1]])[: len(pairs)]]
        marks = np.random.default_rng(0).integers(1, 2**62, len(self.dimensions), dtype=np.int64)
        signature = np.zeros(self.count, dtype=np.int64)
        np.add.at(signature, pairs // max(len(self.dimensions), 1), marks[pairs % max(len(self.dimensions), 1)])
        _, first, group = np.unique(signature, return_index=True, return_inverse=True)
        rank = np.empty(len(first), dtype=np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        self.group_of_node = rank[group.reshape(-1)] if self.count else np.empty(0, np.int64)
        self.group_count = len(first)

    # -- look-ups --------------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many nodes can be removed."""
        return len(self.components)

    def labels_of(self, dimension: Dimension) -> Labels:
        """Returns the labels of a dimension that are still there, in their order."""
        labels = np.arange(dimension.start, dimension.start + dimension.size)
        return labels[self.alive[labels]]

    def labels_of_node(self, node: int) -> Labels:
        """Returns all slices of a node."""
        return self.members[self.member_ends[node] : self.member_ends[node + 1]]

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
        return self.facts.told(self.facts.inexact[fact]) if fact >= 0 else ""

    def one_per_group(self, nodes: np.ndarray) -> np.ndarray:
        """Returns one node of each group that a choice touches."""
        return nodes[np.unique(self.group_of_node[nodes], return_index=True)[1]]

    def emptied(self, removed: Mask) -> list[Dimension]:
        """Returns the dimensions of which nothing would be left."""
        left = np.add.reduceat((self.alive & ~removed)[: self.slice_labels].astype(np.int64), self.starts)
        return [self.dimensions[place] for place in np.flatnonzero(left == 0)]

    def pin(self, labels: Iterable[Labels], operation: str, module: str, why: str) -> None:
        """Adds pins found after the run; call `assemble` when all are in."""
        place = self.facts.place(operation, module)
        self.facts.pins.extend((row, place, why) for row in labels)


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
            found: dict[Dimension, str] = dict.fromkeys(seeds, "asked for")
            start = [seed for seed in seeds if seed in self.network]
            for parent, child in nx.edge_bfs(self.network, start) if start else ():
                if child not in found:
                    operation, module = self.structure.facts.places[self.network.edges[parent, child]["place"]]
                    found[child] = f"coupled to {parent.name} by {operation} in {module or 'the network'}"
            self._reasons[seeds] = found
        return self._reasons[seeds].get(dimension, "coupled")

    @cached_property
    def network(self) -> nx.Graph:
        """Dimensions as nodes, and the first operation that ties two of them as edges."""
        structure, network = self.structure, nx.Graph()
        for one, other, place in structure.facts.ties:
            if len(one) and one[0] < structure.slice_labels and other[0] < structure.slice_labels:
                ends = [structure.dimensions[structure.owners(side[0])] for side in (one, other)]
                if ends[0] != ends[1] and not network.has_edge(*ends):
                    network.add_edge(*ends, place=place)
        return network
