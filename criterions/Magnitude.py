from torch import Tensor

from pruning import Batches, PrunableState, WeightCriterion
from pruning.scores import magnitudes


class Magnitude(WeightCriterion):
    """Absolute weight, ranked over all layers (Han et al. 2015, arXiv:1506.02626).

    |w|; large is worth keeping; needs no data. Before training it sees only the initial values, so give it a trained
    network with --checkpoint_name.
    """

    needs_data = False

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        return magnitudes(network)
