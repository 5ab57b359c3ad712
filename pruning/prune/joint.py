"""One event of a criterion that scores weights and nodes on one scale."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pruning.distributed import broadcast_by_name
from pruning.prune.criterion import JointCriterion
from pruning.prune.nodes import checked_node_scores, node_selection_of, remove_nodes
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
    weights, nodes = criterion.joint_scores(network, event.batches)
    scores = broadcast_by_name(detached(weights))
    check_scores(scores, alive)
    nodes = checked_node_scores(network, nodes)
    if event.invert:
        scores, nodes = {name: -score for name, score in scores.items()}, -nodes
    layout = node_selection_of(network)

    def choose() -> Tensor:
        return layout.keep_above(nodes, joint_threshold(network, scores, layout.effective(nodes), budget))

    event = dataclasses.replace(event, cut_along=[*event.cut_along, scores])
    remove_nodes(network, layout, choose, event, ranking=nodes)
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
    return float(nth_smallest(flat, place))
