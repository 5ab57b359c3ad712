"""One event of a criterion that scores weights and nodes on one scale."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pruning.distributed import broadcast_by_name
from pruning.prune.bounds import node_selection_of
from pruning.prune.criterion import JointCriterion
from pruning.prune.layout import NodeSelection
from pruning.prune.nodes import checked_node_scores, remove_nodes
from pruning.prune.rank import Budget, check_scores, detached, keep_top_global, nth_smallest
from pruning.prune.step import Event, carry_out, mask_weights, weight_budget
from pruning.state import PrunableState


@carry_out.register(JointCriterion)
def _prune_both(criterion: JointCriterion, network: PrunableState, event: Event) -> str:
    alive = network.alive()
    budget = weight_budget(network, alive, event.sparsity)
    n_alive = sum(int(mask.count_nonzero()) for mask in alive.values())
    if budget.keep >= n_alive:
        return "" if budget.keep == n_alive else "the network is already sparser than that"
    weight_scores, node_scores = criterion.joint_scores(network, event.batches)
    scores = broadcast_by_name(detached(weight_scores))
    check_scores(scores, alive)
    nodes = checked_node_scores(network, node_scores)
    if event.invert:
        scores = {name: -score for name, score in scores.items()}
        nodes = -nodes

    def choose(selection: NodeSelection) -> Tensor:
        threshold = joint_threshold(network, scores, selection.effective(nodes), budget)
        return selection.keep_above(nodes, threshold)

    event = dataclasses.replace(event, cut_along=[*event.cut_along, scores])
    remove_nodes(network, node_selection_of(network), choose, event)
    network.last_scores = scores
    # The nodes are gone; the same ranking of the weights that are left brings the count to the budget exactly.
    budget = weight_budget(network, network.alive(), event.sparsity)
    return mask_weights(network, keep_top_global(scores, budget), budget)


def joint_threshold(network: PrunableState, weights: dict[str, Tensor], nodes: Tensor, budget: Budget) -> float:
    """Returns the one threshold under which weights and nodes go together so that the budget of weights stays.

    A weight goes as soon as its own score or that of a node it belongs to lies under the threshold, so the smallest of
    these says when; of all weights, the `budget.keep`-th largest of these numbers is the threshold.

    Args:
        network: what is pruned.
        weights: score per ranked weight.
        nodes: (nodes,) score per node, infinite for those that must stay.
        budget: how many weights may stay.
    """
    # Index -1, of what belongs to no node, finds the infinity at the end.
    limits = torch.cat([nodes, torch.tensor([torch.inf])])
    ends = []
    for name, alive in budget.alive.items():
        end = _ends(network, name, weights[name], limits)
        ends.append(end.flatten() if bool(alive.all()) else end[alive])
    device = ends[0].device
    flat = torch.cat([end.to(device) for end in ends])
    n_keep = min(max(budget.keep, 1), len(flat))
    return float(nth_smallest(flat, len(flat) - n_keep))


def _ends(network: PrunableState, name: str, score: Tensor, limits: Tensor) -> Tensor:
    """Returns per weight the threshold above which it is gone, by itself or with a node of it."""
    ends = score if score.dtype == torch.float64 else score.float()
    limits = limits.to(ends)
    for dim in range(ends.dim()):
        nodes = torch.from_numpy(network.graph.nodes_along(name, dim)).to(ends.device)
        shape = [1] * ends.dim()
        shape[dim] = -1
        ends = torch.minimum(ends, limits[nodes].view(shape))
    return ends
