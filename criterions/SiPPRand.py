from collections.abc import Mapping

from torch import Tensor

from criterions._guarantee import SAMPLED
from criterions._sampling import Parts, inclusion, water_filling
from criterions._sipp import Sensitivities, draw_weights, inverse, parts_of_layers, renewed
from pruning import Batches, Budget, PrunableState, WeightCriterion


class SiPPRand(Sensitivities, WeightCriterion):
    """Weights drawn in proportion to their sensitivity and re-weighted, without bias (arXiv:1910.05422).

    The weights of a filter and sign are a part; parts share the budget so that the sum of their error bounds is
    smallest, and each weight that stays is divided by its probability to stay. The draw is without replacement, in
    exactly the number asked for; its bound is that of the paper's draw with replacement. Data without labels.

    Args:
        points: samples of S; as many as the theory asks for at this delta if not given.
        delta: probability with which the theory's promise may fail, above 0 to below 1.
        seed: of the draw (the run's own seed).
    """

    over_positions = "max"
    theorem = SAMPLED

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
        most = parts.sums((sizes > 0).double())
        counts = water_filling(parts.alpha(sizes), parts.filters, most, places)
        probabilities, _ = inclusion(sizes, parts, counts)
        return probabilities, inverse(probabilities)
