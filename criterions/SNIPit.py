from torch import Tensor

from criterions._halving import Halving
from pruning import Batches, PrunableState, WeightCriterion
from pruning.scores import connection_sensitivities


class SNIPit(Halving, WeightCriterion):
    """SNIP again and again, halving the distance to the limit each time (Verdenius et al. 2020, arXiv:2006.00896).

    Args:
        snip_steps: how often the distance to the limit is halved after the first event; makes snip_steps + 2 events.
        batch_statistics: score with each batch's own norm statistics instead of the running ones.
    """

    def __init__(self, *, snip_steps: int = 5, batch_statistics: bool = False) -> None:
        super().__init__(snip_steps=snip_steps)
        self.batch_statistics = batch_statistics

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        return connection_sensitivities(network, batches, batch_statistics=self.batch_statistics)
