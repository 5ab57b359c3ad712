from torch import Tensor

from pruning import Batches, JointCriterion, PrunableState
from pruning.scores import gate_gradients, require_signal


class CNIP(JointCriterion):
    """SNIP and SNAP on one scale, weights and nodes in one ranking (Verdenius et al. 2020, arXiv:2006.00896).

    Both scores are elasticities, |w dL/dw / L| and |dL/dc / L|, from the same pass. The limit counts weights: one
    threshold for both is found by bisection, nodes under it are cut out and weights under it masked.
    """

    def joint_scores(self, network: PrunableState, batches: Batches) -> tuple[dict[str, Tensor], Tensor]:
        nodes, gradients, loss = gate_gradients(network, batches)
        # One divisor for both kinds: it makes them elasticities and changes no rank within a pass.
        scale = max(abs(loss), 1e-8)
        weights = {name: (weight.detach() * gradients[name] / scale).abs() for name, weight in network.weights()}
        return require_signal(weights), nodes.abs() / scale
