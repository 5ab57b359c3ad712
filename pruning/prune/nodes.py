"""One event of a criterion of nodes: from a target to a plan that is carried out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pruning.cut.plan import PruningPlan
from pruning.distributed import broadcast
from pruning.errors import UsageError
from pruning.graph.graph import DependencyGraph
from pruning.prune.criterion import NodeCriterion
from pruning.prune.layout import NodeSelection
from pruning.prune.step import Event, carry_out
from pruning.prune.target import counted_by, filled, most_to_keep, nodes_to_keep, reached
from pruning.state import PrunableState

NEAR = 0.005  # more than was asked by so little is no news: nodes have sizes


@carry_out.register(NodeCriterion)
def _prune_nodes(criterion: NodeCriterion, network: PrunableState, event: Event) -> str:
    counted = counted_by(criterion, network)
    ahead = _ahead(network, counted, event.sparsity) if criterion.threshold is None else None
    if ahead is not None:
        return ahead
    scores = checked_node_scores(network, criterion.node_scores(network, event.batches))
    ranking = -scores if event.invert else scores
    local = (network.node_rules.ranking or criterion.ranking) == "local"
    layout = node_selection_of(network, local=local, min_share=min(criterion.min_share, (1 - event.sparsity) / 2))

    def choose() -> Tensor:
        if criterion.threshold is not None:
            return layout.keep(ranking, int(layout.keep_above(scores, criterion.threshold).sum()))
        keep = layout.keep(ranking, most_to_keep(network, layout, ranking, event.sparsity, counted))
        if counted == "weights" and not local and layout.multiples is None:
            keep = filled(network, layout, ranking, keep, event.sparsity)
        # The criterion may choose others; how many of each group, and what cannot go, is not its business.
        return layout.best(criterion.draw(network, keep).double(), layout.counts(keep))

    told, carried = partial(criterion.before_cut, network), [*event.cut_along, criterion.carried]
    event = dataclasses.replace(event, cut_along=carried, before_cut=told)
    before = len(scores)
    refusals = remove_nodes(network, layout, choose, event, ranking=ranking)
    network.last_scores = {"nodes": scores}
    if criterion.threshold is not None:
        nothing = f"no score lies under the threshold of {criterion.threshold}"
        return "; ".join(refusals) or (nothing if len(network.graph.nodes) == before else "")
    return _shortfall(network, counted, event.sparsity, "; ".join(refusals) or layout.describe())


def checked_node_scores(network: PrunableState, scores: Tensor) -> Tensor:
    """Returns node scores on the CPU in double precision, or raises UsageError."""
    count = len(network.graph.nodes)
    if not isinstance(scores, Tensor):
        raise UsageError(f"The criterion gave its node scores as a {type(scores).__name__}, not as a tensor.")
    if tuple(scores.shape) != (count,):
        raise UsageError(f"The criterion gave node scores of shape {tuple(scores.shape)}; there are {count} nodes.")
    if scores.is_complex():
        raise UsageError("The node scores are complex numbers, which have no order; scores must be real.")
    if not torch.isfinite(scores).all():
        node = network.graph.nodes[int((~torch.isfinite(scores)).nonzero()[0])]
        raise UsageError(f"The score of a node of {next(iter(node.slices))[0]!r} is not finite; nothing was pruned.")
    return broadcast(scores.detach().cpu().double())


def node_selection_of(network: PrunableState, *, local: bool = False, min_share: float = 0.0) -> NodeSelection:
    """Returns how the network's nodes may be chosen, by the user's rules and the least share of every layer."""
    rules, graph = network.node_rules, network.graph
    multiples = None
    if rules.round_to > 1:
        # One node of a grouped convolution is a channel of each group: its width grows by as many at a time.
        widths = [graph.nodes[int(group.nodes[0])].producers.values() for group in graph.groups]
        each = [math.gcd(0, *map(len, producers)) or 1 for producers in widths]
        multiples = np.array([rules.round_to // math.gcd(rules.round_to, width) for width in each], dtype=np.int64)
    least = np.maximum(_shares_of_start(graph, min_share), rules.min_keep) if min_share else rules.min_keep
    return NodeSelection(graph.structure.group_of_node, least, multiples, local)


def _shares_of_start(graph: DependencyGraph, share: float) -> np.ndarray:
    """Returns (groups,) how many nodes are a share of what each group had at the start, rounded up."""
    structure, found = graph.structure, []
    for group in graph.groups:
        # The narrowest dimension is a layer's own; wider ones (of concatenations) hold other groups too.
        owners = np.unique(structure.owners(structure.labels_of_node(int(group.nodes[0]))))
        own = structure.dimensions[owners[np.argmin(structure.sizes[owners])]]
        found.append(math.ceil(share * len(group.nodes) * own.size / len(structure.labels_of(own)) - 1e-9))
    return np.array(found, dtype=np.int64)


def remove_nodes(
    network: PrunableState, layout: NodeSelection, choose: Callable[[], Tensor], event: Event, *, ranking: Tensor
) -> list[str]:
    """Cuts nodes out of the network and of all that runs along with it.

    Args:
        network: what is pruned.
        layout: what must stay; nodes that the network's code does not let go are added to it.
        choose: returns a bool tensor over nodes, those that stay; asked again when the layout has grown.
        event: whose optimizers and companions are cut along.
        ranking: (nodes,) says which of those that were refused are tried again.

    Returns:
        Why nodes were refused, each reason once.
    """
    network.graph.traced.refresh()
    refusals: dict[str, None] = {}
    plan, refused = _planned(network, layout, choose, event)
    while refused:
        # It may be the number that the code does not take, so fewer of the same layer are tried before none.
        for nodes, why in refused:
            layout.fix(nodes, ranking)
            refusals[why] = None
        plan, refused = _planned(network, layout, choose, event)
    for group in layout.fixed_groups():
        # What stood beside the trouble may have been held back for nothing.
        fixed = layout.release(group)
        more, refused = _planned(network, layout, choose, event)
        if refused or more is None or len(more.nodes) <= (len(plan.nodes) if plan else 0):
            layout.fixed = fixed
        else:
            plan = more
    if plan is not None:
        keep = torch.ones(len(ranking), dtype=torch.bool)
        keep[torch.from_numpy(plan.nodes)] = False
        event.before_cut(keep)
        plan.exec(event.optimizers, [network.masks.keep, *event.cut_along])
        network.masks.refresh()
    return list(refusals)


def _planned(
    network: PrunableState, layout: NodeSelection, choose: Callable[[], Tensor], event: Event
) -> tuple[PruningPlan | None, list[tuple[np.ndarray, str]]]:
    """Returns the plan for a choice, None where nothing is to go, and what of it was refused."""
    keep = choose()
    if event.shuffle is not None:
        keep = layout.best(torch.rand(len(keep), generator=event.shuffle), layout.counts(keep))
    gone = np.flatnonzero(~keep.numpy())
    if not len(gone):
        return None, []
    try:
        plan = network.graph.plan(gone)
    except UsageError as error:
        return None, [(gone, str(error))]
    return plan, plan.refused


def _ahead(network: PrunableState, counted: str, target: float) -> str | None:
    """Returns what there is to say if nothing has to go for a target, None if something has to."""
    if counted == "nodes":
        left, wanted = len(network.graph.nodes), nodes_to_keep(network.nodes_total(), target)
        if left >= wanted:
            return "" if left == wanted else None
        round_to = network.node_rules.round_to
        if wanted - left < round_to:  # the last event rounded its widths down
            return f"{left:,} nodes stay instead of {wanted:,}: widths are multiples of {round_to}"
        return "the network is already sparser than that"
    return "the network is already sparser than that" if reached(network, counted) >= target else None


def _shortfall(network: PrunableState, counted: str, target: float, why: str) -> str:
    """Returns why a target was not reached exactly, "" if it was."""
    if counted == "nodes":
        left, wanted = len(network.graph.nodes), nodes_to_keep(network.nodes_total(), target)
        return "" if left == wanted else f"{left:,} nodes stay instead of {wanted:,}: {why}"
    now = reached(network, counted)
    # No two measurements of time are alike.
    slack = 0.02 if counted == "latency" else 1e-6
    if abs(now - target) <= slack or target < now <= target + NEAR:
        return ""
    if now > target:
        round_to = network.node_rules.round_to
        why = f"widths are multiples of {round_to}" if round_to > 1 else "with one node more it would be less"
    return f"{now:.4f} of the {counted} went instead of {target:.4f}: {why}"
