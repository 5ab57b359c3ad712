from torch import Tensor

from criterions._halving import Halving
from pruning import Batches, JointCriterion, PrunableState
from pruning.scores import elasticities


class CNIPitDuring(Halving, JointCriterion):
    """CNIP-it with its events spread over training (Verdenius et al. 2020, arXiv:2006.00896)."""

    moment = "during"

    def joint_scores(self, network: PrunableState, batches: Batches) -> tuple[dict[str, Tensor], Tensor]:
        return elasticities(network, batches)
