"""Which layers make the nodes of a group, so that rules by layer can hold for nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from pruning.graph.lookup import NodeLookup
from pruning.trace.labels import CONSUMER, NORM, PRODUCER

# The dimensions that the nodes of a group have slices of, (parameter name, dimension) each: they never change.
GroupKey: TypeAlias = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class GroupMakers:
    """What is known of a group.

    Args:
        nodes: how many it has.
        makers: parameters that make its nodes: rows of weights, biases, what is added to them.
        norms: parameters that hand them on one by one.
        touched: all parameters and buffers with slices of them, those that read them included.
    """

    nodes: int
    makers: frozenset[str]
    norms: frozenset[str]
    touched: frozenset[str]


def makers_of_groups(graph: NodeLookup) -> dict[GroupKey, GroupMakers]:
    """Returns what is known of each group of a graph, in the order of `graph.groups`."""
    groups = graph.groups
    makers: list[set[str]] = [set() for _ in groups]
    norms: list[set[str]] = [set() for _ in groups]
    structure = graph.structure
    for dimension in structure.dimensions:
        if not dimension.trained:  # a buffer, which goes along
            continue
        labels = structure.labels_of(dimension)
        roles = structure.roles[labels]
        # What plays no role is a value of its own, such as a position that is added.
        makes = (roles & PRODUCER > 0) | (roles & (CONSUMER | NORM) == 0)
        for role, found in ((makes, makers), (roles & NORM > 0, norms)):
            for group in np.unique(structure.group_of_node[structure.nodes_in(labels[role])]):
                found[group].add(dimension.name)
    known = {}
    for group in groups:
        touched = frozenset(name for name, _ in group.layers)
        made_by = frozenset(makers[group.index]) or touched
        known[group.layers] = GroupMakers(len(group.nodes), made_by, frozenset(norms[group.index]), touched)
    return known


def bundles(layers: Mapping[int, Iterable[str]]) -> list[list[int]]:
    """Returns groups of nodes that a layer makes together: the channels of one may lie in several.

    Args:
        layers: group -> the layers that make it.
    """
    import networkx as nx  # only those who give shares wait for it

    links = nx.Graph()
    for group, names in layers.items():
        links.add_edges_from((group, name) for name in names)
    found = []
    for part in nx.connected_components(links):
        found.append(sorted(group for group in part if isinstance(group, int)))
    return found
