from torch import Tensor

from pruning import Batches, NodeCriterion, PrunableState
from pruning.scores import weights_only


class EfficientConvNets(NodeCriterion):
    """L1 norm of each filter, the same share of every layer, during training (Li et al. 2017, arXiv:1608.08710).

    Sum of |w| over the rows of all layers that produce the node; needs no data.
    """

    moment = "during"
    ranking = "local"
    needs_data = False

    def node_scores(self, network: PrunableState, batches: Batches) -> Tensor:
        sizes = {name: weight.abs() for name, weight in weights_only(network)}
        return network.graph.reduce_to_nodes(sizes, role="producer")
