"""One pruning event, for each kind of criterion: from a target to what goes, and making it go.

A target is a fraction removed of what was there at the start. Counting what must go now, ranking and the guards
happen here and in `pruning.select`; criteria only score.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial, singledispatch
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pruning import limits, select
from pruning.criterion import Batches, Criterion, JointCriterion, LowRankCriterion, NodeCriterion, WeightCriterion
from pruning.distributed import same, same_by_name
from pruning.errors import UsageError
from pruning.ranks import lower_ranks
from pruning.select import Budget, Layout, check_scores, detached, guarded

if TYPE_CHECKING:
    from pruning.graph import DependencyGraph
    from pruning.network import PrunableNetwork
    from pruning.plan import PruningPlan

NEAR = 0.005  # more than was asked by so little is no news: nodes have sizes


@dataclass
class Event:
    """What an event is told.

    Args:
        target: fraction removed of what was there at the start.
        batches: (inputs, targets) pairs to score on.
        invert: keep the worst instead of the best (a control experiment).
        shuffle: keep as many nodes of each layer, but which ones is drawn from this generator (another control).
        optimizers: whose state is cut along with the parameters.
        companions: dicts of tensors by parameter name that are cut along.
        before_cut: told which nodes stay, just before the others go.
    """

    target: float
    batches: Batches = ()
    invert: bool = False
    shuffle: torch.Generator | None = None
    optimizers: Iterable[torch.optim.Optimizer] = ()
    companions: Iterable[Any] = ()
    before_cut: Callable[[Tensor], None] = lambda keep: None


@singledispatch
def carry_out(criterion: Criterion, network: PrunableNetwork, event: Event) -> str:
    """Prunes to the event's target and returns why it was not reached exactly, "" if it was."""
    raise UsageError(f"{type(criterion).__name__} scores neither weights nor nodes.")


@carry_out.register(WeightCriterion)
def _prune_weights(criterion: WeightCriterion, network: PrunableNetwork, event: Event) -> str:
    alive = network.alive()
    budget = weight_budget(network, alive, event.target)
    n_alive = sum(int(mask.count_nonzero()) for mask in alive.values())
    nothing_to_do = budget.keep > n_alive or (budget.keep == n_alive and not criterion.revives)
    if criterion.threshold is None and nothing_to_do:
        return "" if budget.keep == n_alive else "the network is already sparser than that"
    if criterion.revives:
        # A zero has nothing to come back with, so what was gone before the first event stays gone.
        alive = {name: mask | (network.dense[name] != 0) for name, mask in alive.items()}
        budget = dataclasses.replace(budget, alive=alive)
    scores = same_by_name(detached(criterion.weight_scores(network, event.batches)))
    check_scores(scores, alive)
    network.last_scores = scores
    if criterion.threshold is not None:
        above = {name: score >= criterion.threshold for name, score in scores.items()}
        # How many stay is known now; which ones is a ranking as for any limit, guards and controls included.
        budget.keep = sum(int(mask.count_nonzero()) for mask in guarded(above, scores, budget).values())
        if budget.keep == n_alive:
            return f"no score lies under the threshold of {criterion.threshold}"
    ranking = {name: -s.double() for name, s in scores.items()} if event.invert else scores
    # What is gone stays gone and no layer is emptied, whatever a selection of the criterion's own may say.
    return mask_weights(network, guarded(criterion.select(ranking, budget), ranking, budget), budget)


def weight_budget(network: PrunableNetwork, alive: dict[str, Tensor], target: float) -> Budget:
    """Returns how many of the ranked weights may stay."""
    total = sum(network.start_sizes[name] for name in alive)
    return Budget(keep=total - round(target * total), alive=alive, slices=network.slices)


def mask_weights(network: PrunableNetwork, keep: dict[str, Tensor], budget: Budget) -> str:
    """Takes over keep-masks and returns why their number differs from the budget, "" if it does not."""
    network.masks.set(keep)
    kept = sum(int(network.masks.keep[name].count_nonzero()) for name in keep)
    if kept == budget.keep:
        return ""
    why = "no layer is emptied" if kept > budget.keep else "the criterion's own selection"
    return f"{kept:,} weights stay instead of {budget.keep:,}: {why}"


@carry_out.register(NodeCriterion)
def _prune_nodes(criterion: NodeCriterion, network: PrunableNetwork, event: Event) -> str:
    counted = network.counted(criterion)
    ahead = _ahead(network, counted, event.target) if criterion.threshold is None else None
    if ahead is not None:
        return ahead
    scores = checked_node_scores(network, criterion.node_scores(network, event.batches))
    ranking = -scores if event.invert else scores
    local = (network.node_rules.ranking or criterion.ranking) == "local"
    layout = layout_of(network, local=local, min_share=min(criterion.min_share, (1 - event.target) / 2))

    def choose() -> Tensor:
        if criterion.threshold is not None:
            return layout.keep(ranking, int(layout.keep_above(scores, criterion.threshold).sum()))
        keep = layout.keep(ranking, limits.most_to_keep(network, layout, ranking, event.target, counted))
        if counted == "weights" and not local and layout.multiples is None:
            keep = limits.filled(network, layout, ranking, keep, event.target)
        # The criterion may choose others; how many of each group, and what cannot go, is not its business.
        return layout.best(criterion.draw(network, keep).double(), layout.counts(keep))

    told, carried = partial(criterion.before_cut, network), [*event.companions, criterion.carried]
    event = dataclasses.replace(event, companions=carried, before_cut=told)
    before = len(scores)
    refusals = remove_nodes(network, layout, choose, event, ranking=ranking)
    network.last_scores = {"nodes": scores}
    if criterion.threshold is not None:
        nothing = f"no score lies under the threshold of {criterion.threshold}"
        return "; ".join(refusals) or (nothing if len(network.graph.nodes) == before else "")
    return _shortfall(network, counted, event.target, "; ".join(refusals) or layout.describe())


def checked_node_scores(network: PrunableNetwork, scores: Tensor) -> Tensor:
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
    return same(scores.detach().cpu().double())


def layout_of(network: PrunableNetwork, *, local: bool = False, min_share: float = 0.0) -> Layout:
    """Returns how the network's nodes may be chosen, by the user's rules and the least share of every layer."""
    rules, graph = network.node_rules, network.graph
    multiples = None
    if rules.round_to > 1:
        # One node of a grouped convolution is a channel of each group: its width grows by as many at a time.
        widths = [graph.nodes[int(group.nodes[0])].producers.values() for group in graph.groups]
        each = [math.gcd(0, *map(len, producers)) or 1 for producers in widths]
        multiples = np.array([rules.round_to // math.gcd(rules.round_to, width) for width in each], dtype=np.int64)
    least = np.maximum(_shares_of_start(graph, min_share), rules.min_keep) if min_share else rules.min_keep
    return Layout(graph.structure.group_of_node, least, multiples, local)


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
    network: PrunableNetwork, layout: Layout, choose: Callable[[], Tensor], event: Event, *, ranking: Tensor
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
    network.graph.seen.refresh()
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
        plan.exec(event.optimizers, [network.masks.keep, *event.companions])
        network.masks.refresh()
    return list(refusals)


def _planned(
    network: PrunableNetwork, layout: Layout, choose: Callable[[], Tensor], event: Event
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


def _ahead(network: PrunableNetwork, counted: str, target: float) -> str | None:
    """Returns what there is to say if nothing has to go for a target, None if something has to."""
    if counted == "nodes":
        left, wanted = len(network.graph.nodes), limits.nodes_to_keep(network.nodes_total(), target)
        if left >= wanted:
            return "" if left == wanted else None
        round_to = network.node_rules.round_to
        if wanted - left < round_to:  # the last event rounded its widths down
            return f"{left:,} nodes stay instead of {wanted:,}: widths are multiples of {round_to}"
        return "the network is already sparser than that"
    return "the network is already sparser than that" if limits.reached(network, counted) >= target else None


def _shortfall(network: PrunableNetwork, counted: str, target: float, why: str) -> str:
    """Returns why a target was not reached exactly, "" if it was."""
    if counted == "nodes":
        left, wanted = len(network.graph.nodes), limits.nodes_to_keep(network.nodes_total(), target)
        return "" if left == wanted else f"{left:,} nodes stay instead of {wanted:,}: {why}"
    now = limits.reached(network, counted)
    # No two measurements of time are alike.
    slack = 0.02 if counted == "latency" else 1e-6
    if abs(now - target) <= slack or target < now <= target + NEAR:
        return ""
    if now > target:
        round_to = network.node_rules.round_to
        why = f"widths are multiples of {round_to}" if round_to > 1 else "with one node more it would be less"
    return f"{now:.4f} of the {counted} went instead of {target:.4f}: {why}"


@carry_out.register(LowRankCriterion)
def _decompose(criterion: LowRankCriterion, network: PrunableNetwork, event: Event) -> str:
    return lower_ranks(criterion, network, event)


@carry_out.register(JointCriterion)
def _prune_both(criterion: JointCriterion, network: PrunableNetwork, event: Event) -> str:
    alive = network.alive()
    budget = weight_budget(network, alive, event.target)
    n_alive = sum(int(mask.count_nonzero()) for mask in alive.values())
    if budget.keep >= n_alive:
        return "" if budget.keep == n_alive else "the network is already sparser than that"
    weights, nodes = criterion.joint_scores(network, event.batches)
    scores = same_by_name(detached(weights))
    check_scores(scores, alive)
    nodes = checked_node_scores(network, nodes)
    if event.invert:
        scores, nodes = {name: -score for name, score in scores.items()}, -nodes
    layout = layout_of(network)

    def choose() -> Tensor:
        return layout.keep_above(nodes, joint_threshold(network, scores, layout.effective(nodes), budget))

    event = dataclasses.replace(event, companions=[*event.companions, scores])
    remove_nodes(network, layout, choose, event, ranking=nodes)
    network.last_scores = scores
    # The nodes are gone; the same ranking of the weights that are left brings the count to the budget exactly.
    budget = weight_budget(network, network.alive(), event.target)
    return mask_weights(network, select.keep_top_global(scores, budget), budget)


def joint_threshold(network: PrunableNetwork, weights: dict[str, Tensor], nodes: Tensor, budget: Budget) -> float:
    """Returns the one threshold under which weights and nodes go together so that the budget of weights stays.

    A weight goes as soon as its own score or that of a node it belongs to lies under the threshold, so the smallest of
    these says when; of all weights, the `budget.keep`-th largest of these numbers is the threshold.

    Args:
        network: what is pruned.
        weights: score per ranked weight.
        nodes: (nodes,) score per node, infinite for those that must stay.
        budget: how many weights may stay.
    """
    parts = []
    for name, alive in budget.alive.items():
        score = weights[name]
        ends = score.double() if score.dtype == torch.float64 else score.float()
        limit = torch.cat([nodes, torch.tensor([torch.inf])]).to(ends)
        for dim in range(ends.dim()):
            # Index -1, of what belongs to no node, is the infinity at the end.
            along = limit[torch.from_numpy(network.graph.nodes_along(name, dim)).to(ends.device)]
            ends = torch.minimum(ends, along.view([-1 if axis == dim else 1 for axis in range(ends.dim())]))
        parts.append(ends.flatten() if bool(alive.all()) else ends[alive])
    flat = torch.cat([part.to(parts[0].device) for part in parts])
    place = len(flat) - min(max(budget.keep, 1), len(flat))
    return float(select.nth_smallest(flat, place))
