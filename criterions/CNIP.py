from torch import Tensor

from pruning import Batches, JointCriterion, PrunableState
from pruning.scores import elasticities


class CNIP(JointCriterion):
    """SNIP and SNAP on one scale, weights and nodes in one ranking (Verdenius et al. 2020, arXiv:2006.00896).

    Both scores are elasticities, |w dL/dw / L| and |dL/dc / L|, from the same pass. The limit counts weights: one
    threshold for both is found by bisection, nodes under it are cut out and weights under it masked.
    """

    def joint_scores(self, network: PrunableState, batches: Batches) -> tuple[dict[str, Tensor], Tensor]:
        return elasticities(network, batches)
