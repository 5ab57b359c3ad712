from typing import Literal

import torch
from torch import Tensor

from criterions._guarantee import SAMPLED
from criterions._sampling import Parts, draw, inclusion
from criterions.PFP import PFP, along_readers
from pruning import Batches, PrunableState


class PFPRand(PFP):
    """Filters drawn in proportion to their sensitivity, their readers re-weighted without bias (arXiv:1911.07412).

    As many of each layer as PFP keeps; what reads a filter that stays is divided by its probability to stay. The draw
    is without replacement, in exactly the number asked for; its bound is that of the paper's draw with replacement.
    Needs a trained network and data without labels.

    Args:
        points: samples of S; as many as the theory asks for at this delta if not given.
        delta: probability with which the theory's promise may fail, above 0 to below 1.
        channel_reduce: a channel's share is that of its largest kernel entry ("max") or of all together ("sum").
        seed: of the draw (the run's own seed).
    """

    theorem = SAMPLED

    def __init__(
        self,
        *,
        points: int | None = None,
        delta: float = 1e-16,
        channel_reduce: Literal["max", "sum"] = "max",
        seed: int = 333,
    ) -> None:
        super().__init__(points=points, delta=delta, channel_reduce=channel_reduce)
        self.seed, self.carried = seed, {}

    def draw(self, network: PrunableState, keep: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        drawn, factors = keep.clone(), torch.ones(len(keep), dtype=torch.float64)
        for group in network.graph.groups:
            nodes = torch.from_numpy(group.nodes)
            sizes = self.node_sensitivities[nodes].clamp_min(1e-30)
            chances = self._chances(sizes, int(keep[nodes].count_nonzero()))
            drawn[nodes], factors[nodes] = draw(chances, generator), 1 / chances.clamp_min(1e-300)
        self.carried.clear()
        self.carried.update(along_readers(network, factors))
        self._factors, self._stay = factors, drawn
        return drawn

    def before_cut(self, network: PrunableState, keep: Tensor) -> None:
        if torch.equal(keep, self._stay):  # nobody else had a say in the draw
            super().before_cut(network, keep)

    def new_values(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        factors, self.carried = self.carried, {}  # good for one event
        return {name: network.model.get_parameter(name).detach() * factor for name, factor in factors.items()}

    def _chances(self, sizes: Tensor, count: int) -> Tensor:
        """Returns the probability of each node of a group to stay; they add up to the count."""
        if count == len(sizes):
            return torch.ones_like(sizes)
        one = torch.ones(1, dtype=torch.float64)
        part = Parts(torch.zeros(len(sizes), dtype=torch.long), one, one)
        return inclusion(sizes, part, count * one)[0]
