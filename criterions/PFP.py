import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from criterions._guarantee import CUT, Guaranteed, largest_epsilon, log_term
from criterions._points import outputs_of_layers
from criterions._sampling import draws_for
from pruning import Batches, CompressedNetwork, NodeCriterion, PrunableState
from pruning.scores import channel_sensitivities


class PFP(Guaranteed, NodeCriterion):
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
    theorem = CUT

    def __init__(
        self, *, points: int | None = None, delta: float = 1e-16, channel_reduce: Literal["max", "sum"] = "max"
    ) -> None:
        super().__init__(points, delta)
        self.channel_reduce = channel_reduce
        self._factors: Tensor | None = None  # (nodes,) what readers of a drawn node are multiplied by

    def node_scores(self, network: PrunableState, batches: Batches) -> Tensor:
        """Returns minus the log of the error-level parameter at which each node comes in: ranking it is the allocation.

        With m = t beta draws in a group, beta = S_q 2 K ln(8 (P + 1) k / delta), it keeps the nodes of largest
        sensitivity, as many as m draws hit on average, rounded up. So its i-th node comes in at one t, and the nodes
        of smallest t over the whole network are the papers' allocation for the common error level that fits the budget.
        """
        sensitivities, scales = self.sensitivities(network, self.draw_points(network, batches).own)
        self.node_sensitivities, self._factors = sensitivities, None
        entering = torch.empty_like(sensitivities)
        for group in network.graph.groups:
            nodes = torch.from_numpy(group.nodes)
            sizes = sensitivities[nodes].clamp_min(1e-30)
            order = torch.sort(-sizes, stable=True).indices
            draws = draws_for(sizes / sizes.sum(), torch.arange(len(sizes), dtype=torch.float64))
            entering[nodes[order]] = draws - (sizes.sum() * scales[nodes].max()).log()
        return -entering

    def before_cut(self, network: PrunableState, keep: Tensor) -> None:
        factors = torch.ones_like(self.node_sensitivities) if self._factors is None else self._factors
        along = dict(along_readers(network, factors * keep))
        changed = {name: weight.detach() * along.get(name, 1.0) for name, weight in network.weights()}
        epsilons = {name: self._epsilon(network, name, keep, factors) if name in along else 0.0 for name in changed}
        self.tell(network, changed, epsilons if self.theorem else dict.fromkeys(changed))

    def _epsilon(self, network: PrunableState, name: str, keep: Tensor, factors: Tensor) -> float | None:
        along, weight = reader(network, name)[1], network.model.get_parameter(name)
        if self._drawn is None:
            return None
        nodes, columns = np.unique(along[along >= 0], return_counts=True)
        # The largest share of one entry says of a channel with many of them that much of each.
        entries = columns * math.prod(weight.shape[2:]) if self.channel_reduce == "max" else np.ones_like(columns)
        nodes, part = torch.from_numpy(nodes), torch.zeros(len(nodes), dtype=torch.long)
        sizes = self.node_sensitivities[nodes] * torch.from_numpy(entries)
        logarithm = log_term(outputs_of_layers(network)[name], self._drawn.delta)
        return largest_epsilon(sizes, factors[nodes], keep[nodes], part, logarithm)

    def sensitivities(self, network: PrunableState, batches: Batches) -> tuple[Tensor, Tensor]:
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


def reader(network: PrunableState, name: str) -> tuple[int, np.ndarray]:
    """Returns the dimension along which a weight reads channels, and their nodes, -1 for those that are none.

    A depthwise layer counts as no reader: a channel alone makes outputs that go with it, so those who read them decide.
    """
    weight, module = network.model.get_parameter(name), network.model.get_submodule(network.owners()[name])
    if getattr(module, "groups", 1) == getattr(module, "in_channels", 0) > 1:
        return 1, np.full(weight.shape[1], -1)
    dim = 0 if getattr(module, "transposed", False) else 1
    return dim, network.graph.nodes_along(name, dim, role="consumer")


def along_readers(network: PrunableState, values: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, what each entry is multiplied by) of the weights that read nodes, from one value per node."""
    for name, weight in network.weights():
        dim, nodes = reader(network, name)
        if (nodes >= 0).any():
            column = torch.from_numpy(np.where(nodes >= 0, values.numpy()[nodes], 1.0)).to(weight)
            yield name, column.view([-1 if d == dim else 1 for d in range(weight.dim())]).expand(weight.shape).clone()


def PFPNet(model: nn.Module, loader: Batches, **options: Any) -> CompressedNetwork:
    """Returns a copy of a network that PFP compresses, see `CompressedNetwork`; options are those of PFP."""
    return CompressedNetwork(model, loader, PFP(**options))
