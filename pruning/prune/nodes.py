"""One event of a criterion of nodes: from a target to a plan that is carried out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pruning.cut.plan import PruningPlan
from pruning.distributed import broadcast
from pruning.errors import UsageError
from pruning.prune.bounds import Bounds, group_sizes, kinds_of, largest_multiple, node_selection_of, nodes_by_group
from pruning.prune.criterion import NodeCriterion
from pruning.prune.layout import NodeSelection
from pruning.prune.limit import NEAR, filled, most_to_keep, nodes_to_keep, reached
from pruning.prune.reach import counted_by
from pruning.prune.step import Event, carry_out
from pruning.state import PrunableState

Choose = Callable[[NodeSelection], Tensor]


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
    left, wanted = int(network.open_nodes().sum()), nodes_to_keep(network.nodes_total(), target)
    if left > wanted:
        return None
    if left == wanted:
        return ""
    round_to = largest_multiple(network)
    together = int(np.bincount(kinds_of(network.graph.groups)).max(initial=1)) if network.node_rules.uniform else 1
    if wanted - left < round_to * together:  # the last event rounded its widths down
        why = f"widths are multiples of {round_to}" if round_to > 1 else "layers of a kind keep as many"
        return f"{left:,} nodes stay instead of {wanted:,}: {why}"
    return already


def _shortfall(network: PrunableState, counted: str, target: float, why: str) -> str:
    """Returns why a target was not reached exactly, "" if it was."""
    if counted == "nodes":
        left, wanted = int(network.open_nodes().sum()), nodes_to_keep(network.nodes_total(), target)
        return "" if left == wanted else f"{left:,} nodes stay instead of {wanted:,}: {why}"
    now = reached(network, counted)
    # No two measurements of time are alike.
    slack = 0.02 if counted == "latency" else 1e-6
    if abs(now - target) <= slack or target < now <= target + NEAR:
        return ""
    if now > target:
        round_to = largest_multiple(network)
        why = "layers of a kind keep as many" if network.node_rules.uniform else "with one node more it would be less"
        if round_to > 1:
            why = f"widths are multiples of {round_to}"
    return f"{now:.4f} of the {counted} went instead of {target:.4f}: {why}"
