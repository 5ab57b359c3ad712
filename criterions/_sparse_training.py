"""What criteria share that train under a moving mask: a random first mask, and how much an update replaces."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from criterions._densities import Distribution, keep_by, random_scores
from pruning import Budget


class SparseTraining:
    """Training starts under a random mask, and the criterion's `grow_scores` let it move.

    Args:
        growing_rate: share of each layer's weights that an update replaces, above 0 to 1.
        delta_t: optimizer steps between updates; once at the end of every epoch if not given.
        distribution: how many weights a layer gets at the start.
        seed: of the first mask (the run's own seed).
    """

    def __init__(self, growing_rate: float, delta_t: int | None, distribution: Distribution, seed: int) -> None:
        if not 0 < growing_rate <= 1:
            raise ValueError(f"growing_rate must lie in (0, 1]; {growing_rate} was given")
        if delta_t is not None and delta_t < 1:
            raise ValueError(f"delta_t must be at least 1 step; {delta_t} was given")
        self.growing_rate = growing_rate
        self.delta_t = delta_t
        self.distribution = distribution
        self.seed = seed

    def select(self, scores: Mapping[str, Tensor], budget: Budget) -> dict[str, Tensor]:
        # Before training, |w| says nothing.
        order = random_scores(budget.alive, self.seed)
        return keep_by(self.distribution, order, budget)
