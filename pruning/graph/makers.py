"""Which layers make the nodes of a group, so that rules by layer can hold for nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from pruning.graph.lookup import NodeLookup
from pruning.modules.by_name import Named, layer_of
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


def may_go(group: GroupMakers, named: Named, frozen: AbstractSet[str]) -> bool:
    """Whether rules by layer let nodes of a group go: all layers that make them, and none that is to stay."""
    if group.makers & frozen or (group.makers | group.norms) & named.skip:
        return False
    return named.only is None or all(layer_of(name) in named.only_layers for name in group.makers)


def names_that_stay(groups: Iterable[GroupMakers], named: Named, frozen: AbstractSet[str]) -> set[str]:
    """Returns the parameters that lose no slice by the rules: all nodes that they have slices of stay."""
    all_names: set[str] = set()
    can_shrink: set[str] = set()
    for group in groups:
        all_names |= group.touched
        if may_go(group, named, frozen):
            can_shrink |= group.touched
    return all_names - can_shrink


def known_groups(graph: NodeLookup, known: Mapping[GroupKey, GroupMakers]) -> list[GroupMakers]:
    """Returns for each of `graph.groups` what was known of it before, or what it is now."""
    keys = [group.layers for group in graph.groups]
    if not known.keys() >= set(keys):  # layers were replaced since
        known = makers_of_groups(graph) | dict(known)
    return [known[key] for key in keys]


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
