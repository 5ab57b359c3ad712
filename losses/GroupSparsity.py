from torch import Tensor

from losses._penalties import SparsityLoss, checked, node_squares
from pruning import PrunableNetwork
from pruning.scores.per_node import over_group


class GroupSparsity(SparsityLoss):
    """Cross-entropy and DepGraph's group regulariser (Fang et al. 2023, arXiv:2301.12900, section 3.3).

    The sum over nodes of 2^(alpha (I_max - I) / (I_max - I_min)) I, where I is the sum of squares of all that goes with
    a node and I_max, I_min are those of its layer: the weakest shrink fastest. The factor is a constant to gradients.
    Prepares a network for the criterion GroupMagnitude, which then starts from that run's checkpoint; the penalty ends
    with the first pruning event.

    Args:
        group_reg: strength of the penalty; 1e-4 to 5e-4 in the paper.
        group_alpha: how much faster the weakest node shrinks than the strongest: 2 to this power.
    """

    def __init__(self, *, group_reg: float = 5e-4, group_alpha: float = 4.0) -> None:
        self.strength, self.alpha = checked("group_reg", group_reg), checked("group_alpha", group_alpha)

    def measure(self, network: PrunableNetwork) -> Tensor:
        squares = node_squares(network)
        now = squares.detach()
        largest, smallest = over_group(network, now, "amax"), over_group(network, now, "amin")
        # In a layer of equals the exponent is 0 / 0: all of them count once.
        spread = (largest - smallest).masked_fill(largest == smallest, 1)
        return (2 ** (self.alpha * (largest - now) / spread) * squares).sum()
