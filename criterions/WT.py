from torch import Tensor

from pruning import Batches, PrunableState, WeightCriterion
from pruning.scores import magnitudes


class WT(WeightCriterion):
    """Global weight thresholding, the name under which SiPP's papers compare with Magnitude (arXiv:1506.02626)."""

    needs_data = False

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        return magnitudes(network)
