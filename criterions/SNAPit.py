from torch import Tensor

from criterions._halving import Halving
from pruning import Batches, NodeCriterion, PrunableState
from pruning.scores import node_gate_gradients, require_node_signal


class SNAPit(Halving, NodeCriterion):
    """SNAP again and again, halving the distance to the limit each time (Verdenius et al. 2020, arXiv:2006.00896)."""

    def node_scores(self, network: PrunableState, batches: Batches) -> Tensor:
        slopes = node_gate_gradients(network, batches)
        return require_node_signal(slopes.abs())
