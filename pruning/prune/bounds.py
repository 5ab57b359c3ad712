"""How many nodes of each group may stay: by the rules for layers, by multiples, and by what layers of a kind share."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from pruning.errors import UsageError
from pruning.graph.graph import DependencyGraph
from pruning.graph.makers import GroupKey, GroupMakers, bundles
from pruning.graph.nodes import Group
from pruning.modules.by_name import at_most, layer_of
from pruning.prune.layout import NodeSelection, shared_out
from pruning.prune.limit import nodes_to_keep
from pruning.state import PrunableState

NUMBER_IN_PATH = re.compile(r"(?:^|(?<=\.))\d+(?=\.)")  # blocks.3.mlp: which one of several alike


@dataclass
class Shared:
    """Groups that some layer makes together, and of which a share goes.

    Args:
        layer: one of those that make them.
        keys: what `Group.layers` of each is.
        had: nodes that they have before the event.
        wanted: nodes that they keep by the share.
    """

    layer: str
    keys: list[GroupKey]
    had: int
    wanted: int


@dataclass
class Bounds:
    """What the rules by layer say of each group of nodes.

    Args:
        least: (groups,) nodes that it keeps at least.
        most: (groups,) nodes that it keeps at most.
        has_share: (groups,) whether a share of its own goes.
        shared: the groups that have one.
    """

    least: np.ndarray
    most: np.ndarray
    has_share: np.ndarray
    shared: list[Shared] = field(default_factory=list)


def node_selection_of(
    network: PrunableState, *, local: bool = False, min_share: float = 0.0, bounds: Bounds | None = None
) -> NodeSelection:
    """Returns how the network's nodes may be chosen, by the user's rules and the least share of every layer.

    Args:
        network: what is pruned.
        local: the same share of every group, instead of one ranking over all.
        min_share: share of the nodes of the start that every group keeps.
        bounds: what the rules by layer say, see `nodes_by_group`; those of the end if not given.
    """
    rules, graph = network.node_rules, network.graph
    needed = graph.structure.multiples()
    if rules.round_to > 1:
        rounded = np.array([_multiple_of(graph, group, rules.round_to) for group in graph.groups], dtype=np.int64)
        needed = np.lcm(needed, rounded)
    multiples = needed if (needed > 1).any() else None
    bounds = bounds or nodes_by_group(network)
    min_keep = np.maximum(bounds.least, rules.min_keep)
    most = np.maximum(bounds.most, np.minimum(min_keep, group_sizes(network)))
    guard = _guard(network, bounds)
    if min_share:
        # What a criterion says of all layers gives way to the share of one.
        min_keep = np.maximum(np.minimum(_shares_of_start(graph, min_share), most), min_keep)
        guard = "every layer keeps a share of its nodes"
    kinds = kinds_of(graph.groups) if rules.uniform else None
    return NodeSelection(graph.structure.group_of_node, min_keep, multiples, local, most, guard, kinds)


def kinds_of(groups: Iterable[Group]) -> np.ndarray:
    """Returns (groups,) the kind of each: the names of its layers but for numbers, and how many nodes it has.

    So the MLPs of all blocks are one kind, and their attention another.
    """
    known: dict[tuple[frozenset[tuple[str, int]], int], int] = {}
    kinds = []
    for group in groups:
        names = frozenset((NUMBER_IN_PATH.sub("*", name), dim) for name, dim in group.layers)
        kinds.append(known.setdefault((names, len(group.nodes)), len(known)))
    return np.array(kinds, dtype=np.int64)


def _guard(network: PrunableState, bounds: Bounds) -> str:
    """Says what keeps more nodes than were asked for, by the user's rules."""
    if bounds.shared and bool(bounds.has_share[network.open_groups()].all()):
        return "each layer's share is a whole number of nodes"
    if network.layer_rules.max_share is not None:
        return network.layer_rules.why_more()
    n_least = network.node_rules.min_keep
    return f"every layer keeps {n_least}" if n_least > 1 else "no layer is emptied"


def group_sizes(network: PrunableState) -> np.ndarray:
    """Returns (groups,) how many nodes each group has now."""
    structure = network.graph.structure
    return np.bincount(structure.group_of_node, minlength=structure.group_count)


def nodes_by_group(network: PrunableState, progress: float = 1.0) -> Bounds:
    """Returns (groups,) how many nodes each group keeps at least, and at most, by the rules for layers.

    Args:
        network: what is pruned.
        progress: how much of the shares goes by now, 0 to 1.

    Raises:
        UsageError: if layers that share their channels are given different shares.
    """
    sizes = group_sizes(network)
    rules, is_open = network.layer_rules, network.open_groups()
    least = np.where(is_open, 0, sizes)
    found = Bounds(least, most=sizes.copy(), has_share=np.zeros(len(sizes), dtype=bool))
    if not (rules.shares or rules.max_share is not None):
        return found
    groups = network.groups_now()
    if rules.max_share is not None:
        guard = [group.nodes - at_most(rules.max_share, group.nodes) for group in groups]
        found.least = np.maximum(least, np.minimum(guard, sizes))
    keys = [group.layers for group in network.graph.groups]
    for places, layer, share in _bundles_with_share(network, groups, is_open):
        at_start = np.array([groups[place].nodes for place in places], dtype=np.int64)
        total = nodes_to_keep(int(at_start.sum()), share * progress)
        had = int(sizes[places].sum())
        found.shared.append(Shared(layer, [keys[place] for place in places], had, total))
        # What a layer keeps is spread over its groups in proportion to what they had.
        numbers = shared_out(at_start, np.zeros_like(at_start), at_start, total)
        numbers = np.maximum(np.minimum(numbers, sizes[places]), found.least[places])
        found.least[places] = found.most[places] = numbers
        found.has_share[places] = True
    return found


def _bundles_with_share(
    network: PrunableState, groups: list[GroupMakers], is_open: np.ndarray
) -> Iterator[tuple[list[int], str, float]]:
    """Yields (places of groups that some layer makes together, such a layer, the fraction of their nodes that goes)."""
    shares = network.named.shares
    named: dict[int, dict[str, float]] = {}  # place -> the layers that make the group and have a share
    for place, group in enumerate(groups):
        if is_open[place]:
            named[place] = {layer_of(name): shares[name] for name in group.makers & shares.keys()}
    for places in bundles({place: layers.keys() for place, layers in named.items() if layers}):
        share_of: dict[str, float] = {}
        for place in places:
            share_of |= named[place]
        example_of = {share: layer for layer, share in sorted(share_of.items(), reverse=True)}
        if len(example_of) > 1:
            told = " and ".join(f"{layer} {share:g}" for share, layer in example_of.items())
            raise UsageError(f"shares: layers that make the same channels need one share; there are {told}.")
        ((share, layer),) = example_of.items()
        yield places, layer, share


def largest_multiple(network: PrunableState) -> int:
    """Returns what widths are multiples of, by the user's wish or because an operation takes no others."""
    by_operations = int(network.graph.structure.multiples().max(initial=1))
    return max(network.node_rules.round_to, by_operations)


def _multiple_of(graph: DependencyGraph, group: Group, round_to: int) -> int:
    """Returns how many nodes of a group make widths grow by a multiple of `round_to`."""
    node = graph.nodes[int(group.nodes[0])]
    # One node of a grouped convolution is a channel of each group: its width grows by as many at a time.
    channels = [len(indices) for indices in node.producers.values()]
    channels_each = math.gcd(0, *channels) or 1
    return round_to // math.gcd(round_to, channels_each)


def _shares_of_start(graph: DependencyGraph, share: float) -> np.ndarray:
    """Returns (groups,) how many nodes are a share of what each group had at the start, rounded up."""
    structure, found = graph.structure, []
    for group in graph.groups:
        labels = structure.labels_of_node(int(group.nodes[0]))
        owners = np.unique(structure.owners(labels))
        # The narrowest dimension is a layer's own; wider ones (of concatenations) hold other groups too.
        narrowest = owners[np.argmin(structure.sizes[owners])]
        own = structure.dimensions[narrowest]
        nodes_at_start = len(group.nodes) * own.size / len(structure.labels_of(own))
        found.append(math.ceil(share * nodes_at_start - 1e-9))
    return np.array(found, dtype=np.int64)
