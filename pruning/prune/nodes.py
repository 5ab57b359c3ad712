"""One event of a criterion of nodes: from a target to a plan that is carried out."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pruning.cut.plan import PruningPlan
from pruning.distributed import broadcast
from pruning.errors import UsageError
from pruning.graph.graph import DependencyGraph
from pruning.graph.makers import GroupKey, GroupMakers, bundles
from pruning.graph.nodes import Group
from pruning.modules.by_name import at_most, layer_of
from pruning.prune.criterion import NodeCriterion
from pruning.prune.layout import NodeSelection, shared_out
from pruning.prune.limit import counted_by, filled, most_to_keep, nodes_to_keep, reached
from pruning.prune.step import Event, carry_out
from pruning.state import PrunableState

NUMBER_IN_PATH = re.compile(r"(?:^|(?<=\.))\d+(?=\.)")  # blocks.3.mlp: which one of several alike
NEAR = 0.005  # more than was asked by so little is no news: nodes have sizes

Choose = Callable[[NodeSelection], Tensor]


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


@carry_out.register(NodeCriterion)
def _prune_nodes(criterion: NodeCriterion, network: PrunableState, event: Event) -> str:
    counted = counted_by(criterion, network)
    bounds = nodes_by_group(network, event.progress)
    above_share = bool((bounds.most < group_sizes(network)).any())
    if criterion.threshold is None and not above_share:
        nothing_to_do = _ahead(network, counted, event.sparsity)
        if nothing_to_do is not None:
            return nothing_to_do
    scores = checked_node_scores(network, criterion.node_scores(network, event.batches))
    ranking = -scores if event.invert else scores
    local = (network.node_rules.ranking or criterion.ranking) == "local"
    min_share = min(criterion.min_share, (1 - event.sparsity) / 2)
    selection = node_selection_of(network, local=local, min_share=min_share, bounds=bounds)

    def choose(selection: NodeSelection) -> Tensor:
        if criterion.threshold is not None:
            n_keep = int(selection.keep_above(scores, criterion.threshold).sum())
            return selection.keep(ranking, n_keep)
        n_keep = most_to_keep(network, selection, ranking, event.sparsity, counted)
        keep = selection.keep(ranking, n_keep)
        is_free = selection.multiples is None and selection.kinds is None
        if counted == "weights" and not local and is_free:
            keep = filled(network, selection, ranking, keep, event.sparsity)
        # The criterion may choose others; how many of each group, and what cannot go, is not its business.
        drawn = criterion.draw(network, keep).double()
        return selection.best(drawn, selection.counts(keep))

    told = partial(criterion.before_cut, network)
    event = dataclasses.replace(event, cut_along=[*event.cut_along, criterion.carried], before_cut=told)
    nodes_before = len(scores)
    why = remove_nodes(network, selection, choose, event)
    network.last_scores = {"nodes": scores}
    if criterion.threshold is None:
        why = why or selection.describe()
        reasons = [_shortfall(network, counted, event.sparsity, why), _missed(network, bounds, why)]
        return "; ".join(reason for reason in reasons if reason)
    if not why and len(network.graph.nodes) == nodes_before:
        return f"no score lies under the threshold of {criterion.threshold}"
    return why


def _missed(network: PrunableState, bounds: Bounds, why: str) -> str:
    """Says which layers lost more or less than their share, "" if none did."""
    left_of = {group.layers: len(group.nodes) for group in network.graph.groups}
    missed = []
    for shared in bounds.shared:
        left = sum(left_of.get(key, 0) for key in shared.keys)
        if left != min(shared.wanted, shared.had):
            missed.append(f"{shared.layer} keeps {left:,} nodes instead of {shared.wanted:,}")
    if not missed:
        return ""
    more = f" (and {len(missed) - 1} more layers)" if len(missed) > 1 else ""
    return f"{missed[0]}{more}: {why}"


def checked_node_scores(network: PrunableState, scores: Tensor) -> Tensor:
    """Returns node scores on the CPU in double precision, or raises UsageError."""
    count = len(network.graph.nodes)
    if not isinstance(scores, Tensor):
        raise UsageError(f"The criterion gave its node scores as a {type(scores).__name__}, not as a tensor.")
    if tuple(scores.shape) != (count,):
        raise UsageError(f"The criterion gave node scores of shape {tuple(scores.shape)}; there are {count} nodes.")
    if scores.is_complex():
        raise UsageError("The node scores are complex numbers, which have no order; scores must be real.")
    finite = torch.isfinite(scores)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        name, _ = next(iter(network.graph.nodes[first].slices))
        raise UsageError(f"The score of a node of {name!r} is not finite; nothing was pruned.")
    # All processes rank what the first one found, so that they cut the same.
    return broadcast(scores.detach().cpu().double())


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


def _largest_multiple(network: PrunableState) -> int:
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


def remove_nodes(network: PrunableState, selection: NodeSelection, choose: Choose, event: Event) -> str:
    """Cuts nodes out of the network and of all that runs along with it.

    Args:
        network: what is pruned.
        selection: what must stay.
        choose: takes a selection and returns a bool tensor over nodes, those that stay.
        event: whose optimizers and companions are cut along.

    Returns:
        Why more nodes stay than the selection asks for, "" if they do not.

    Raises:
        UsageError: if the network's code does not run without these nodes; nothing is changed then.
    """
    network.graph.traced.refresh()
    keep, why = _choice(selection, choose, event), ""
    try:
        plan = _plan_without(network, keep)
    except UsageError as error:
        # One channel alone is broadcast where several are not; with two of each layer such code runs.
        two_each = _choice(selection.with_two_each(), choose, event)
        if torch.equal(two_each, keep):
            raise
        try:
            keep, plan = two_each, _plan_without(network, two_each)
        except UsageError:
            raise error from None
        why = f"every layer keeps 2, because with fewer: {error}"
    if plan is not None:
        event.before_cut(keep)
        plan.exec(event.optimizers, [network.masks.keep, *event.cut_along])
        network.masks.refresh()
    return why


def _choice(selection: NodeSelection, choose: Choose, event: Event) -> Tensor:
    """Returns a bool tensor over nodes, those that stay; drawn at random per layer in that control experiment."""
    keep = choose(selection)
    if event.shuffle is None:
        return keep
    drawn = torch.rand(len(keep), generator=event.shuffle)
    return selection.best(drawn, selection.counts(keep))


def _plan_without(network: PrunableState, keep: Tensor) -> PruningPlan | None:
    """Returns the plan to remove all other nodes, None where there are none."""
    gone = np.flatnonzero(~keep.numpy())
    return network.graph.plan(gone) if len(gone) else None


def _ahead(network: PrunableState, counted: str, target: float) -> str | None:
    """Returns what there is to say if nothing has to go for a target, None if something has to."""
    already = "the network is already sparser than that"
    if counted != "nodes":
        return already if reached(network, counted) >= target else None
    left, wanted = _nodes_there(network), nodes_to_keep(network.nodes_total(), target)
    if left > wanted:
        return None
    if left == wanted:
        return ""
    round_to = _largest_multiple(network)
    together = int(np.bincount(kinds_of(network.graph.groups)).max(initial=1)) if network.node_rules.uniform else 1
    if wanted - left < round_to * together:  # the last event rounded its widths down
        why = f"widths are multiples of {round_to}" if round_to > 1 else "layers of a kind keep as many"
        return f"{left:,} nodes stay instead of {wanted:,}: {why}"
    return already


def _nodes_there(network: PrunableState) -> int:
    """Returns how many nodes are left of those that may go."""
    return int(network.open_nodes().sum())


def _shortfall(network: PrunableState, counted: str, target: float, why: str) -> str:
    """Returns why a target was not reached exactly, "" if it was."""
    if counted == "nodes":
        left, wanted = _nodes_there(network), nodes_to_keep(network.nodes_total(), target)
        return "" if left == wanted else f"{left:,} nodes stay instead of {wanted:,}: {why}"
    now = reached(network, counted)
    # No two measurements of time are alike.
    slack = 0.02 if counted == "latency" else 1e-6
    if abs(now - target) <= slack or target < now <= target + NEAR:
        return ""
    if now > target:
        round_to = _largest_multiple(network)
        why = "layers of a kind keep as many" if network.node_rules.uniform else "with one node more it would be less"
        if round_to > 1:
            why = f"widths are multiples of {round_to}"
    return f"{now:.4f} of the {counted} went instead of {target:.4f}: {why}"
