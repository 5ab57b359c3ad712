import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from criterions._points import first_points, outputs_of_layers, points_needed
from criterions._sampling import draws_for
from pruning import NodeCriterion, PrunableNetwork
from pruning.criterion import Batches
from pruning.sensitivity import channel_sensitivities


class PFP(NodeCriterion):
    """Filters by the largest share they have in any output that reads them (Liebenwein et al. 2020, arXiv:1911.07412).

    A node's sensitivity is the largest over all layers that read it. One error level for all layers says how many each
    keeps: as many as draws in proportion to the sensitivities would hit on average. The limit counts weights. Needs a
    trained network and data without labels.

    Args:
        points: samples of S; as many as the theory asks for at this delta if not given.
        delta: probability with which the theory's promise may fail, above 0 to below 1.
        channel_reduce: a channel's share is that of its largest kernel entry ("max") or of all together ("sum").
    """

    counts = "weights"

    def __init__(
        self, *, points: int | None = None, delta: float = 1e-16, channel_reduce: Literal["max", "sum"] = "max"
    ) -> None:
        if points is not None and points < 1:
            raise ValueError(f"points must be at least 1; {points} was given")
        if not 0 < delta < 1:
            raise ValueError(f"delta must lie in (0, 1); {delta} was given")
        self.points, self.delta, self.channel_reduce = points, delta, channel_reduce

    def node_scores(self, network: PrunableNetwork, batches: Batches) -> Tensor:
        """Returns minus the log of the error-level parameter at which each node comes in: ranking it is the allocation.

        With m = t beta draws in a group, beta = S_q 2 K ln(8 (P + 1) k / delta), it keeps the nodes of largest
        sensitivity, as many as m draws hit on average, rounded up. So its i-th node comes in at one t, and the nodes
        of smallest t over the whole network are the papers' allocation for the common error level that fits the budget.
        """
        number = self.points or points_needed(network, self.delta)
        sensitivities, scales = self.sensitivities(network, first_points(batches, number))
        entering = torch.empty_like(sensitivities)
        for group in network.graph.groups:
            nodes = torch.from_numpy(group.nodes)
            sizes = sensitivities[nodes].clamp_min(1e-30)
            order = torch.sort(-sizes, stable=True).indices
            draws = draws_for(sizes / sizes.sum(), torch.arange(len(sizes), dtype=torch.float64))
            entering[nodes[order]] = draws - (sizes.sum() * scales[nodes].max()).log()
        return -entering

    def sensitivities(self, network: PrunableNetwork, batches: Batches) -> tuple[Tensor, Tensor]:
        """Returns (nodes,) the sensitivity of each node and the factor 2 K ln(...) of its largest consumer.

        What no watched layer reads (the channels of queries, which only keys multiply) counts as 1, the largest.
        """
        count, outputs = len(network.graph.nodes), outputs_of_layers(network)
        largest, scales = torch.full((count,), -1.0, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
        for name, shares in channel_sensitivities(network, batches, self.channel_reduce).items():
            if len(shares) > 1 and shares.shape[1] == 1:
                continue  # depthwise: a channel alone makes outputs that go with it, so those who read them decide
            nodes, values = consumed(network, name, shares)
            own = torch.zeros(count, dtype=torch.float64)
            how = "amax" if self.channel_reduce == "max" else "sum"  # a node may have several columns, after a flatten
            own.scatter_reduce_(0, nodes, values, how)
            weight = network.model.get_parameter(name)
            positions, kernel = outputs[name] / weight.shape[0], math.prod(weight.shape[2:])
            largest[nodes] = torch.maximum(largest, own.clamp_max(1))[nodes]
            scales[nodes] = scales[nodes].clamp_min(6 * math.log(8 * (positions + 1) * kernel / self.delta))
        return torch.where(largest < 0, 1.0, largest), scales


def consumed(network: PrunableNetwork, name: str, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the nodes whose values a weight reads, one for each of its input channels, and their values.

    Args:
        network: whose nodes are meant.
        name: of the weight.
        shares: (groups, channels / groups) something per input channel.
    """
    weight = network.model.get_parameter(name)
    for dim, values in ((1, shares.amax(0)), (0, shares.flatten())):
        if weight.shape[dim] == len(values):
            nodes = network.graph.nodes_along(name, dim, role="consumer")
            if (nodes >= 0).any():
                places = np.flatnonzero(nodes >= 0)
                return torch.from_numpy(nodes[places]), values.detach().cpu().double()[torch.from_numpy(places)]
    return torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.float64)
