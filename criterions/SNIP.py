from torch import Tensor

from pruning import Batches, PrunableState, WeightCriterion
from pruning.scores import connection_sensitivities


class SNIP(WeightCriterion):
    """Connection sensitivity |w dL/dw|, in one shot (Lee et al. 2019, arXiv:1810.02340).

    The derivative of the loss to a gate on the connection; large means that removing it changes the loss much. Needs
    labelled batches. The papers' normalisers (the sum of all scores, or the loss) are one scalar and change no rank.

    Args:
        batch_statistics: score with each batch's own norm statistics instead of the running ones.
    """

    def __init__(self, *, batch_statistics: bool = False) -> None:
        self.batch_statistics = batch_statistics

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        return connection_sensitivities(network, batches, batch_statistics=self.batch_statistics)
