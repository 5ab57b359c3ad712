from torch import Tensor

from pruning import Batches, NodeCriterion, PrunableState
from pruning.scores import node_gate_gradients, require_node_signal


class SNAP(NodeCriterion):
    """SNIP for nodes: |dL/dc| of a gate c on each node, in one shot (Verdenius et al. 2020, arXiv:2006.00896).

    At c = 1 that is |sum of w dL/dw| over the rows and biases of all layers that produce the node; one backward pass
    scores them all, and no gate is put in. Large means that the node's output matters to the loss. Needs labelled
    batches.
    """

    def node_scores(self, network: PrunableState, batches: Batches) -> Tensor:
        slopes = node_gate_gradients(network, batches)
        return require_node_signal(slopes.abs())
