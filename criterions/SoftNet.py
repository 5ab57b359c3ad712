from torch import Tensor

from pruning import Batches, NodeCriterion, PrunableState
from pruning.scores import weights_only


class SoftNet(NodeCriterion):
    """L2 norm of each filter, the same share of every layer (He et al. 2018, arXiv:1808.06866).

    Only the score of soft filter pruning: what is cut does not come back. The limit counts weights. No data; give it a
    trained network.
    """

    ranking = "local"
    counts = "weights"
    needs_data = False

    def node_scores(self, network: PrunableState, batches: Batches) -> Tensor:
        squares = {name: weight.square() for name, weight in weights_only(network)}
        return network.graph.reduce_to_nodes(squares, role="producer").sqrt()
