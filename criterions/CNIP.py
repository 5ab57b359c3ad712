from torch import Tensor

from pruning import JointCriterion, PrunableNetwork
from pruning.criterion import Batches
from pruning.scores import accumulate_gradients


class CNIP(JointCriterion):
    """SNIP and SNAP on one scale, weights and nodes in one ranking (Verdenius et al. 2020, arXiv:2006.00896).

    Both scores are elasticities, |w dL/dw / L| and |dL/dc / L|, from the same pass. The limit counts weights: one
    threshold for both is found by bisection, nodes under it are cut out and weights under it masked.
    """

    def joint_scores(self, network: PrunableNetwork, batches: Batches) -> tuple[dict[str, Tensor], Tensor]:
        parameters = dict(network.model.named_parameters())
        names = [name for name, parameter in parameters.items() if parameter.is_floating_point()]
        gradients, loss = accumulate_gradients(network, batches, names=names)
        # One divisor for both kinds: it makes them elasticities and changes no rank within a pass.
        scale = max(abs(loss), 1e-8)
        products = {name: parameters[name].detach() * gradients[name] / scale for name in names}
        weights = {name: products[name].abs() for name, _ in network.weights()}
        return weights, network.graph.reduce_to_nodes(products, role="producer").abs()
