"""One pruning event, for each kind of criterion: from a target to what goes, and making it go.

A target is a fraction removed of what was there at the start. Counting what must go now, ranking and the guards
happen here and in `pruning.select`; criteria only score.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pruning import select
from pruning.criterion import Batches, Criterion, JointCriterion, NodeCriterion, WeightCriterion
from pruning.errors import UsageError
from pruning.select import Budget, check_scores, guarded

if TYPE_CHECKING:
    from pruning.network import PrunableNetwork


@dataclass
class Event:
    """What an event is told.

    Args:
        target: fraction removed of what was there at the start.
        batches: (inputs, targets) pairs to score on.
        invert: keep the worst instead of the best (a control experiment).
        optimizers: whose state is cut along with the parameters.
        companions: dicts of tensors by parameter name that are cut along.
    """

    target: float
    batches: Batches = ()
    invert: bool = False
    optimizers: Iterable[torch.optim.Optimizer] = ()
    companions: Iterable[Any] = ()


@singledispatch
def carry_out(criterion: Criterion, network: PrunableNetwork, event: Event) -> str:
    """Prunes to the event's target and returns why it was not reached exactly, "" if it was."""
    raise UsageError(f"{type(criterion).__name__} scores neither weights nor nodes.")


@carry_out.register(WeightCriterion)
def _prune_weights(criterion: WeightCriterion, network: PrunableNetwork, event: Event) -> str:
    alive = network.alive()
    if not alive:
        raise UsageError(f"{type(network.model).__name__}: with the outer layers left out there is nothing to prune.")
    budget = weight_budget(network, alive, event.target)
    n_alive = sum(int(mask.sum()) for mask in alive.values())
    if budget.keep >= n_alive:
        return "" if budget.keep == n_alive else "the network is already sparser than that"
    scores = {name: score.detach() for name, score in criterion.weight_scores(network, event.batches).items()}
    check_scores(scores, alive)
    network.last_scores = scores
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
    kept = sum(int(network.masks.keep[name].sum()) for name in keep)
    if kept == budget.keep:
        return ""
    why = "no layer is emptied" if kept > budget.keep else "the criterion's own selection"
    return f"{kept:,} weights stay instead of {budget.keep:,}: {why}"


@carry_out.register(NodeCriterion)
def _prune_nodes(criterion: NodeCriterion, network: PrunableNetwork, event: Event) -> str:
    rules = network.node_rules
    n_alive, wanted = len(network.graph.nodes), nodes_to_keep(network.nodes_total(), event.target)
    if rules.target in (None, "nodes") and wanted >= n_alive:
        return "" if wanted == n_alive else "the network is already sparser than that"
    scores = checked_node_scores(network, criterion.node_scores(network, event.batches))
    ranking = -scores if event.invert else scores
    local = (rules.ranking or criterion.ranking) == "local"
    layout = select.Layout(network.graph.structure.group_of_node, rules.min_keep, rules.round_to, local)
    if rules.target not in (None, "nodes"):
        wanted = _bisect_nodes(network, layout, ranking, event.target)
    keep = layout.keep(ranking, wanted)
    refused = remove_nodes(network, ~keep, event)
    left = len(network.graph.nodes)
    if refused or left == wanted:
        return refused
    return f"{left:,} nodes stay instead of {wanted:,}: {layout.describe()}"


def nodes_to_keep(total: int, target: float) -> int:
    """Returns floor((1 - target) * total), not misled by 1 - 0.9 being a little less than 0.1."""
    return math.floor((1 - target) * total + 1e-6)


def checked_node_scores(network: PrunableNetwork, scores: Tensor) -> Tensor:
    """Returns node scores on the CPU in double precision, or raises UsageError."""
    count = len(network.graph.nodes)
    if tuple(scores.shape) != (count,):
        raise UsageError(f"The criterion gave node scores of shape {tuple(scores.shape)}; there are {count} nodes.")
    if not torch.isfinite(scores).all():
        node = network.graph.nodes[int((~torch.isfinite(scores)).nonzero()[0])]
        raise UsageError(f"The score of a node of {next(iter(node.slices))[0]!r} is not finite; nothing was pruned.")
    return scores.detach().cpu().double()


def remove_nodes(network: PrunableNetwork, gone: Tensor, event: Event, *companions: Any) -> str:
    """Cuts nodes out of the network and all that runs along with it; returns what was refused, and why."""
    nodes = np.flatnonzero(gone.numpy())
    if not len(nodes):
        return ""
    plan = network.graph.plan(nodes)
    plan.exec(event.optimizers, [network.masks.keep, *event.companions, *companions])
    network.masks.refresh()
    return "; ".join(f"{len(stay):,} nodes stay: {why}" for stay, why in plan.refused)


def _bisect_nodes(network: PrunableNetwork, layout: select.Layout, ranking: Tensor, target: float) -> int:
    """Returns the largest number of nodes to keep with which weights, FLOPs or latency come down to the target."""
    low, high = 0, len(ranking)
    while high - low > 1:
        middle = (low + high) // 2
        gone = np.flatnonzero(~layout.keep(ranking, middle).numpy())
        reached = network.sparsity_after(gone) if len(gone) else network.reached_target()
        low, high = (middle, high) if reached >= target else (low, middle)
    return low


@carry_out.register(JointCriterion)
def _prune_both(criterion: JointCriterion, network: PrunableNetwork, event: Event) -> str:
    alive = network.alive()
    budget = weight_budget(network, alive, event.target)
    if budget.keep >= sum(int(mask.sum()) for mask in alive.values()):
        return "the network is already sparser than that"
    weights, nodes = criterion.joint_scores(network, event.batches)
    check_scores(weights, alive)
    nodes = checked_node_scores(network, nodes)
    if event.invert:
        weights, nodes = {name: -score for name, score in weights.items()}, -nodes
    layout = select.Layout(network.graph.structure.group_of_node, network.node_rules.min_keep)
    keep = layout.keep_above(nodes, _joint_threshold(network, weights, nodes, budget, layout))
    scores = {name: score.detach().clone() for name, score in weights.items()}
    refused = remove_nodes(network, ~keep, event, scores)
    network.last_scores = scores
    # The nodes are gone; the same ranking of the weights that are left brings the count to the budget exactly.
    budget = weight_budget(network, network.alive(), event.target)
    return refused or mask_weights(network, select.keep_top_global(scores, budget), budget)


def _joint_threshold(
    network: PrunableNetwork, weights: dict[str, Tensor], nodes: Tensor, budget: Budget, layout: select.Layout
) -> float:
    """Bisects on the one threshold under which weights and nodes go together, until the weights left fit the budget."""
    flat = torch.cat([weights[name][mask].double().cpu() for name, mask in budget.alive.items()] + [nodes])
    order = flat.sort().values
    low, high = 0, len(order) - 1
    while low < high:
        middle = (low + high) // 2
        threshold = float(order[middle])
        left = _weights_left(network, weights, layout.keep_above(nodes, threshold), threshold, budget)
        low, high = (middle + 1, high) if left > budget.keep else (low, middle)
    # One step short of the budget: the rest is weights alone, so that no node goes for a rounding.
    return float(order[max(0, low - 1)])


def _weights_left(
    network: PrunableNetwork, weights: dict[str, Tensor], keep: Tensor, threshold: float, budget: Budget
) -> int:
    left = 0
    for name, alive in budget.alive.items():
        kept = alive & (weights[name] >= threshold)
        for dim in range(2):
            along = torch.from_numpy(network.graph.nodes_along(name, dim))
            stays = (along < 0) | keep[along.clamp(min=0)]
            kept = kept.movedim(dim, 0)[stays.to(kept.device)].movedim(0, dim)
        left += int(kept.sum())
    return left
