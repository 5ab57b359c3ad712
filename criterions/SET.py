from collections.abc import Mapping

import torch
from torch import Tensor

from criterions._densities import Distribution, keep_by, random_scores
from criterions.Magnitude import Magnitude
from pruning import Batches, Budget, PrunableState


class SET(Magnitude):
    """Sparse evolutionary training: weak weights make room for random ones (Mocanu et al. 2017, arXiv:1707.04780).

    Training starts under a random mask. At each update every layer loses the share `growing_rate` of its weights, those
    of smallest |w|, and grows as many at random places, from zero; its sparsity stays.

    Args:
        growing_rate: share of each layer's weights that an update replaces, above 0 to 1 (the paper's zeta).
        delta_t: optimizer steps between updates; once at the end of every epoch if not given.
        distribution: how many weights a layer gets at the start: "erk" in proportion to its width (Erdos-Renyi-Kernel,
            which is the paper's own for linear layers), "uniform" the same share of every layer, "global" as it falls.
        seed: of the first mask (the run's own seed).
    """

    def __init__(
        self,
        *,
        growing_rate: float = 0.3,
        delta_t: int | None = None,
        distribution: Distribution = "erk",
        seed: int = 333,
    ) -> None:
        if not 0 < growing_rate <= 1:
            raise ValueError(f"growing_rate must lie in (0, 1]; {growing_rate} was given")
        if delta_t is not None and delta_t < 1:
            raise ValueError(f"delta_t must be at least 1 step; {delta_t} was given")
        self.growing_rate, self.delta_t = growing_rate, delta_t
        self.distribution, self.seed = distribution, seed

    def select(self, scores: Mapping[str, Tensor], budget: Budget) -> dict[str, Tensor]:
        # The first mask is random: before training, |w| says nothing.
        return keep_by(self.distribution, random_scores(budget.alive, self.seed), budget)

    def grow_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        """Returns random numbers: every free place is as good as any other."""
        return {name: torch.rand(weight.shape, dtype=torch.float64) for name, weight in network.weights()}

    def update_share(self, progress: float) -> float:
        return self.growing_rate
