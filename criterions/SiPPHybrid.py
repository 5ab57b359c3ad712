from collections.abc import Mapping

import torch
from torch import Tensor

from criterions._guarantee import CUT, SAMPLED
from criterions._sampling import K, Parts, error_of, inclusion, water_filling
from criterions._sipp import Sensitivities, draw_weights, inverse, parts_of_layers, renewed
from pruning import Batches, Budget, PrunableState, WeightCriterion


class SiPPHybrid(Sensitivities, WeightCriterion):
    """SiPPRand, but a filter keeps its most sensitive weights wherever that has the smaller bound (arXiv:1910.05422).

    The bound of a cut is K times the sum of the sensitivities that go, K = 3. Data without labels.

    Args:
        points: samples of S; as many as the theory asks for at this delta if not given.
        delta: probability with which the theory's promise may fail, above 0 to below 1.
        seed: of the draw (the run's own seed).
    """

    over_positions = "max"
    theorem = f"{SAMPLED}; where a filter is cut, {CUT}"

    def __init__(self, *, points: int | None = None, delta: float = 1e-16, seed: int = 333) -> None:
        super().__init__(points=points, delta=delta)
        self.seed = seed
        self._layers: dict[str, tuple[Tensor, float]] = {}

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        self._layers = parts_of_layers(network, self.delta)
        return super().weight_scores(network, batches)

    def select(self, scores: Mapping[str, Tensor], budget: Budget) -> dict[str, Tensor]:
        masks, factors = draw_weights(scores, budget, self._layers, self._chances, self.seed)
        self._factors = renewed(self._factors, scores, factors)
        return masks

    def _chances(self, sizes: Tensor, parts: Parts, places: int) -> tuple[Tensor, Tensor]:
        """Returns each weight's probability to stay, and what it is multiplied by if it does."""
        alpha = parts.alpha(sizes)
        most = parts.sums((sizes > 0).double())
        counts = water_filling(alpha, parts.filters, most, places)
        probabilities, _ = inclusion(sizes, parts, counts)
        # The number that stays need not be whole: the last of a part may stay in part only, and is drawn.
        best = (counts[parts.of_entry] - parts.ranks(sizes)).clamp(0, 1)
        error_of_cut = K * parts.sums(sizes * (1 - best))
        cut = (error_of_cut <= error_of(alpha, counts))[parts.of_entry]
        factors = torch.where(cut, 1.0, inverse(probabilities))
        return torch.where(cut, best, probabilities), factors
