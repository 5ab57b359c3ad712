import torch
from torch import Tensor

from pruning import Batches, NodeCriterion, PrunableState
from pruning.scores import weights_only


class FPGM(NodeCriterion):
    """Distance to the other filters of the layer: the most replaceable go first (He et al. 2019, arXiv:1811.00250).

    Sum over the layer's filters of the Euclidean distance to them; where several layers produce a node, their
    distances add up. The same share of every layer. No data; give it a trained network.
    """

    ranking = "local"
    needs_data = False

    def node_scores(self, network: PrunableState, batches: Batches) -> Tensor:
        total = torch.zeros(len(network.graph.nodes), dtype=torch.float64)
        for name, weight in weights_only(network):
            for dim in range(weight.dim()):
                nodes = torch.from_numpy(network.graph.nodes_along(name, dim, role="producer"))
                prunable = nodes >= 0
                if not prunable.any():
                    continue
                filters = weight.movedim(dim, 0).flatten(1).double().cpu()
                # To all filters of the layer, those that cannot go included.
                distances = torch.cdist(filters, filters).sum(1)
                total.index_add_(0, nodes[prunable], distances[prunable])
        return total
