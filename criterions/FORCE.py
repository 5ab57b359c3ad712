from functools import partial

from torch import Tensor

from pruning import Batches, PrunableState, WeightCriterion, schedule
from pruning.scores import accumulate_gradients, require_signal


class FORCE(WeightCriterion):
    """Foresight connection sensitivity: weights can come back between steps (de Jorge et al. 2020, arXiv:2006.09081).

    |w dL/dw|, the gradient taken in the network as it is pruned so far and w the weight as it was before. Each step
    chooses among all weights anew; large means that the connection matters to the network that will be left.

    Args:
        force_steps: pruning events, all before training; after t of T steps (1 - limit)^(t/T) is kept.
        batch_statistics: score with each batch's own norm statistics instead of the running ones.
    """

    revives = True

    def __init__(self, *, force_steps: int = 60, batch_statistics: bool = False) -> None:
        if force_steps < 1:
            raise ValueError(f"force_steps must be at least 1; {force_steps} was given")
        self.schedule = partial(schedule.exponential, rounds=force_steps)
        self.batch_statistics = batch_statistics

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        gradients, _ = accumulate_gradients(network, batches, batch_statistics=self.batch_statistics)
        scores = {}
        for name, weight in network.weights():
            # A masked weight is zero by now; what it could contribute is said by the value that it had.
            value = network.pre_event_values.get(name, weight).detach()
            scores[name] = (value * gradients[name]).abs()
        return require_signal(scores)
