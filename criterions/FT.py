from torch import Tensor

from pruning import Batches, NodeCriterion, PrunableState
from pruning.scores import weights_only


class FT(NodeCriterion):
    """Filter thresholding: L1 norm of each filter, the same share of every layer (Li et al. 2017, arXiv:1608.08710).

    Sum of |w| over the rows of all layers that produce the node, as PFP's papers compare it: in one event, with a limit
    that counts weights. No data; give it a trained network.
    """

    ranking = "local"
    counts = "weights"
    needs_data = False

    def node_scores(self, network: PrunableState, batches: Batches) -> Tensor:
        sizes = {name: weight.abs() for name, weight in weights_only(network)}
        return network.graph.reduce_to_nodes(sizes, role="producer")
