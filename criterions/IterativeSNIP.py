from functools import partial

from torch import Tensor

from pruning import Batches, PrunableState, WeightCriterion, schedule
from pruning.scores import connection_sensitivities


class IterativeSNIP(WeightCriterion):
    """SNIP again and again, equal shares of the rest each time (de Jorge et al. 2020, arXiv:2006.09081).

    Args:
        force_steps: pruning events, all before training; after t of T steps (1 - limit)^(t/T) is kept.
        batch_statistics: score with each batch's own norm statistics instead of the running ones.
    """

    def __init__(self, *, force_steps: int = 60, batch_statistics: bool = False) -> None:
        if force_steps < 1:
            raise ValueError(f"force_steps must be at least 1; {force_steps} was given")
        self.schedule = partial(schedule.exponential, rounds=force_steps)
        self.batch_statistics = batch_statistics

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        return connection_sensitivities(network, batches, batch_statistics=self.batch_statistics)
