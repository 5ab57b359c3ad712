from collections.abc import Mapping

import torch
from torch import Tensor

from criterions._sampling import Parts
from criterions._sipp import draw_weights, inverse, renewed, reweighted
from pruning import Batches, Budget, PrunableState, WeightCriterion


class UniformWeights(WeightCriterion):
    """The same share of every filter, drawn at random and re-weighted: what SiPP must beat (arXiv:1910.05422).

    Each weight stays with the same probability and is divided by it, so outputs are right on average. No data.

    Args:
        seed: of the draw (the run's own seed).
    """

    needs_data = False

    def __init__(self, *, seed: int = 333) -> None:
        self.seed = seed
        self._factors: dict[str, Tensor] = {}

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        scores = {}
        for name, weight in network.weights():
            scores[name] = torch.ones_like(weight, dtype=torch.float32)
        return scores

    def select(self, scores: Mapping[str, Tensor], budget: Budget) -> dict[str, Tensor]:
        layers = {}
        for name, mask in budget.alive.items():
            layers[name] = (torch.zeros(mask.numel(), dtype=torch.long), 1.0)  # all of a layer are one part
        masks, factors = draw_weights(scores, budget, layers, self._chances, self.seed)
        self._factors = renewed(self._factors, scores, factors)
        return masks

    def new_values(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        factors, self._factors = self._factors, {}  # good for one event
        return reweighted(network, factors)

    def _chances(self, sizes: Tensor, parts: Parts, places: int) -> tuple[Tensor, Tensor]:
        """Returns each weight's probability to stay, and what it is multiplied by if it does."""
        probabilities = sizes * places / sizes.sum()
        return probabilities, inverse(probabilities)
