from typing import Any, ClassVar

from torch import Tensor

from criterions._hoyer import HoyerThreshold, relative
from pruning import Batches, NodeCriterion, PrunableState
from pruning.scores import over_group, weights_only


class GroupHoyerSquare(HoyerThreshold, NodeCriterion):
    """Nodes that the Hoyer-Square penalty made small for their layer (Yang et al. 2020, arXiv:1908.09979).

    n sum n / sum n^2 over the layer, where n is the Euclidean norm of all that goes with a node (rows, columns, norm
    scales): its size by that under which the penalty pushes nodes of its layer to zero. hoyer_reg sets
    how sparse it becomes; there is no limit. No data.
    """

    wants: ClassVar[dict[str, Any]] = {"loss": "GroupHoyerSquare"}

    def node_scores(self, network: PrunableState, batches: Batches) -> Tensor:
        of_weights = {name: weight.double().square() for name, weight in weights_only(network)}
        squares = network.graph.reduce_to_nodes(of_weights, role="all")
        norms = squares.sqrt()
        return relative(norms, over_group(network, norms), over_group(network, squares))
