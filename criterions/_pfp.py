"""What PFP and its variants share: sensitivities of filters, drawing those that stay, promises of layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from criterions._guarantee import Guaranteed, largest_epsilon, log_term
from criterions._points import entries_of_channel, outputs_of_layers, rows_of
from criterions._sampling import K, Parts, draw, draws_for, inclusion
from pruning import Batches, PrunableState
from pruning.scores import channel_sensitivities, channels_read

SMALLEST = 1e-30  # a sensitivity of 0 has no logarithm and no share

# (sizes of a group's nodes, how many stay) -> probability of each to stay
Chances = Callable[[Tensor, int], Tensor]


class FilterSensitivities(Guaranteed):
    """Scores filters by PFP's sensitivity, and tells before a cut what is promised of each layer.

    Args:
        points: samples of S; as many as the theory asks for at this delta if not given.
        delta: probability with which the theory's promise may fail, above 0 to below 1.
        channel_reduce: a channel's share is that of its largest kernel entry ("max") or of all together ("sum").
    """

    carried: Mapping[str, Tensor]

    def __init__(
        self, *, points: int | None = None, delta: float = 1e-16, channel_reduce: Literal["max", "sum"] = "max"
    ) -> None:
        super().__init__(points, delta)
        self.channel_reduce = channel_reduce
        self._along: dict[str, Tensor] = {}  # weight -> what the readers of drawn nodes are multiplied by
        self.carried = self._along
        self._factors: Tensor | None = None  # (nodes,) the same by node
        self._stay: Tensor | None = None  # (nodes,) bool, what was drawn

    def node_scores(self, network: PrunableState, batches: Batches) -> Tensor:
        """Returns minus the log of the error-level parameter at which each node comes in: ranking it is the allocation.

        With m = t beta draws in a group, beta = S_q 2 K ln(8 (P + 1) k / delta), it keeps the nodes of largest
        sensitivity, as many as m draws hit on average, rounded up. So its i-th node comes in at one t, and the nodes
        of smallest t over the whole network are the papers' allocation for the common error level that fits the budget.
        """
        points = self.draw_points(network, batches)
        sensitivities, scales = self.sensitivities(network, points.own)
        self.node_sensitivities = sensitivities
        self._factors = self._stay = None
        entering = torch.empty_like(sensitivities)
        for group in network.graph.groups:
            nodes = torch.from_numpy(group.nodes)
            sizes = sensitivities[nodes].clamp_min(SMALLEST)
            order = torch.sort(-sizes, stable=True).indices
            counts = torch.arange(len(sizes), dtype=torch.float64)
            draws = draws_for(sizes / sizes.sum(), counts)
            beta = sizes.sum() * scales[nodes].max()
            entering[nodes[order]] = draws - beta.log()
        return -entering

    def sensitivities(self, network: PrunableState, batches: Batches) -> tuple[Tensor, Tensor]:
        """Returns (nodes,) the sensitivity of each node and the factor 2 K ln(...) of its largest consumer.

        What no watched layer reads (the channels of queries, which only keys multiply) counts as 1, the largest.
        """
        count = len(network.graph.nodes)
        outputs = outputs_of_layers(network)
        largest = torch.full((count,), -1.0, dtype=torch.float64)
        scales = torch.ones(count, dtype=torch.float64)
        how = "amax" if self.channel_reduce == "max" else "sum"
        for name, shares in channel_sensitivities(network, batches, self.channel_reduce).items():
            dim, along = channels_read(network, name)
            places = torch.from_numpy(np.flatnonzero(along >= 0))
            nodes = torch.from_numpy(along)[places]
            by_channel = shares.flatten() if dim == 0 else shares.amax(0)
            # A node may have several columns, after a flatten.
            own = torch.zeros(count, dtype=torch.float64)
            own.scatter_reduce_(0, nodes, by_channel.cpu().double()[places], how)
            largest[nodes] = torch.maximum(largest, own.clamp_max(1))[nodes]
            positions = outputs[name] / rows_of(network, name)
            kernel = entries_of_channel(network, name)
            scale = 2 * K * math.log(8 * (positions + 1) * kernel / self.delta)
            scales[nodes] = scales[nodes].clamp_min(scale)
        return torch.where(largest < 0, 1.0, largest), scales

    def before_cut(self, network: PrunableState, keep: Tensor) -> None:
        """Tells what is promised of each layer and measures it, while all weights are still there."""
        if self._stay is not None and not torch.equal(keep, self._stay):
            return  # somebody else had a say in the draw
        factors = torch.ones_like(self.node_sensitivities) if self._factors is None else self._factors
        along = dict(along_readers(network, factors * keep))
        changed: dict[str, Tensor] = {}
        epsilons: dict[str, float | None] = {}
        for name, weight in network.weights():
            changed[name] = weight.detach() * along.get(name, 1.0)
            # A layer that reads no node loses nothing.
            epsilons[name] = self._epsilon(network, name, keep, factors) if name in along else 0.0
        if not self.theorem:
            epsilons = dict.fromkeys(changed)
        self.tell(network, changed, epsilons)

    def draw_filters(self, network: PrunableState, keep: Tensor, chances: Chances, seed: int) -> Tensor:
        """Returns which nodes stay once they are drawn, (nodes,) bool, and notes what makes up for the draw.

        Args:
            network: what is pruned.
            keep: (nodes,) bool, says how many of each group stay.
            chances: says with which probability each of a group stays.
            seed: of the draw.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn = keep.clone()
        factors = torch.ones(len(keep), dtype=torch.float64)
        for group in network.graph.groups:
            nodes = torch.from_numpy(group.nodes)
            sizes = self.node_sensitivities[nodes].clamp_min(SMALLEST)
            probabilities = chances(sizes, int(keep[nodes].count_nonzero()))
            drawn[nodes] = draw(probabilities, generator)
            factors[nodes] = 1 / probabilities.clamp_min(1e-300)
        # The event has hold of this dict already, and cuts along what is in it.
        self._along.clear()
        self._along.update(along_readers(network, factors))
        self._factors, self._stay = factors, drawn
        return drawn

    def new_values(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        """Returns the weights that read drawn nodes, divided by the probabilities."""
        values = {}
        for name, factor in self._along.items():
            values[name] = network.model.get_parameter(name).detach() * factor
        self.carried = self._along = {}  # good for one event
        return values

    def _epsilon(self, network: PrunableState, name: str, keep: Tensor, factors: Tensor) -> float | None:
        if self._drawn is None:
            return None
        _, along = channels_read(network, name)
        nodes, columns = np.unique(along[along >= 0], return_counts=True)
        entries = np.ones_like(columns)
        if self.channel_reduce == "max":
            # The largest share of one entry says of a channel with many of them that much of each.
            entries = columns * entries_of_channel(network, name)
        read = torch.from_numpy(nodes)
        sizes = self.node_sensitivities[read] * torch.from_numpy(entries)
        one_part = torch.zeros(len(read), dtype=torch.long)
        logarithm = log_term(outputs_of_layers(network)[name], self._drawn.delta)
        return largest_epsilon(sizes, factors[read], keep[read], one_part, logarithm)


def in_proportion(sizes: Tensor, count: int) -> Tensor:
    """Returns the probability of each node of a group to stay, in proportion to its size; they add up to the count."""
    if count == len(sizes):
        return torch.ones_like(sizes)
    one = torch.ones(1, dtype=torch.float64)
    one_part = Parts(torch.zeros(len(sizes), dtype=torch.long), one, one)
    probabilities, _ = inclusion(sizes, one_part, count * one)
    return probabilities


def along_readers(network: PrunableState, values: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, what each entry is multiplied by) of the weights that read nodes, from one value per node."""
    for name, weight in network.weights():
        dim, nodes = channels_read(network, name)
        if not (nodes >= 0).any():
            continue
        by_channel = np.where(nodes >= 0, values.numpy()[nodes], 1.0)
        shape = [1] * weight.dim()
        shape[dim] = -1
        column = torch.from_numpy(by_channel).to(weight).view(shape)
        yield name, column.expand(weight.shape).clone()
