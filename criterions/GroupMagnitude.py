from torch import Tensor

from pruning import Batches, NodeCriterion, PrunableState
from pruning.scores import over_group, weights_only


class GroupMagnitude(NodeCriterion):
    """DepGraph's group norm: squares of everything that goes with a node (Fang et al. 2023, arXiv:2301.12900).

    Sum of w^2 over rows, columns and norm scales of the node, by the mean of its group, so that layers compare. No
    data; give it a trained network.
    """

    needs_data = False

    def node_scores(self, network: PrunableState, batches: Batches) -> Tensor:
        squares = {name: weight.square() for name, weight in weights_only(network)}
        norms = network.graph.reduce_to_nodes(squares, role="all")
        return norms / over_group(network, norms).clamp_min(1e-12)
