import torch
from torch import Tensor

from pruning import Batches, NodeCriterion, PrunableState, UsageError
from pruning.scores import node_gate_gradients, require_node_signal


class Taylor(NodeCriterion):
    """Squared first-order change of the loss, averaged over batches (Molchanov et al. 2019, arXiv:1906.10771).

    (sum of w dL/dw over the node's rows and biases)^2 per batch, then the mean: at a minimum gradients average to
    zero, their squares do not. Needs labelled batches, and a trained network.
    """

    def node_scores(self, network: PrunableState, batches: Batches) -> Tensor:
        squares = [node_gate_gradients(network, [batch]).square() for batch in batches]
        if not squares:
            raise UsageError("Taylor scores on data, and it was given no batches.")
        return require_node_signal(torch.stack(squares).mean(0))
