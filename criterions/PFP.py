import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from criterions._points import first_points, outputs_of_layers, points_needed
from criterions._sampling import draws_for
from pruning import CompressedNetwork, NodeCriterion, PrunableNetwork
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
        self.node_sensitivities = sensitivities
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
            dim, along = reader(network, name)
            places = torch.from_numpy(np.flatnonzero(along >= 0))
            nodes = torch.from_numpy(along)[places]
            values = (shares.flatten() if dim == 0 else shares.amax(0)).cpu().double()[places]
            own = torch.zeros(count, dtype=torch.float64)
            how = "amax" if self.channel_reduce == "max" else "sum"  # a node may have several columns, after a flatten
            own.scatter_reduce_(0, nodes, values, how)
            weight = network.model.get_parameter(name)
            positions, kernel = outputs[name] / weight.shape[0], math.prod(weight.shape[2:])
            largest[nodes] = torch.maximum(largest, own.clamp_max(1))[nodes]
            scales[nodes] = scales[nodes].clamp_min(6 * math.log(8 * (positions + 1) * kernel / self.delta))
        return torch.where(largest < 0, 1.0, largest), scales


def reader(network: PrunableNetwork, name: str) -> tuple[int, np.ndarray]:
    """Returns the dimension along which a weight reads channels, and their nodes, -1 for those that are none.

    A depthwise layer counts as no reader: a channel alone makes outputs that go with it, so those who read them decide.
    """
    weight, module = network.model.get_parameter(name), network.model.get_submodule(network.owners()[name])
    if getattr(module, "groups", 1) == getattr(module, "in_channels", 0) > 1:
        return 1, np.full(weight.shape[1], -1)
    dim = 0 if getattr(module, "transposed", False) else 1
    return dim, network.graph.nodes_along(name, dim, role="consumer")


def PFPNet(model: nn.Module, loader: Batches, **options: Any) -> CompressedNetwork:
    """Returns a copy of a network that PFP compresses, see `CompressedNetwork`; options are those of PFP."""
    return CompressedNetwork(model, loader, PFP(**options))
