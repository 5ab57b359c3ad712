from torch import Tensor

from criterions._halving import Halving
from pruning import Batches, JointCriterion, PrunableState
from pruning.scores import elasticities


class CNIPit(Halving, JointCriterion):
    """CNIP again and again, halving the distance to the limit each time (Verdenius et al. 2020, arXiv:2006.00896)."""

    def joint_scores(self, network: PrunableState, batches: Batches) -> tuple[dict[str, Tensor], Tensor]:
        return elasticities(network, batches)
