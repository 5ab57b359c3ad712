import torch
from torch import Tensor

from losses._penalties import SparsityLoss, checked
from pruning import PrunableNetwork, UsageError
from pruning.scores.per_node import norm_scales


class SlimmingL1(SparsityLoss):
    """Cross-entropy and the sum of the norms' absolute scales |gamma| (Liu et al. 2017, arXiv:1708.06519).

    The criterion Slimming asks for it. The penalty ends with the first pruning event.

    Args:
        slimming_reg: strength of the penalty; 1e-4 for VGG and 1e-5 for residual networks in the paper.
    """

    def __init__(self, *, slimming_reg: float = 1e-4) -> None:
        self.strength = checked("slimming_reg", slimming_reg)

    def measure(self, network: PrunableNetwork) -> Tensor:
        scales = [scale.abs().sum() for _, scale in norm_scales(network)]
        if not scales:
            raise UsageError(f"SlimmingL1 shrinks norm scales, and {type(network.model).__name__} has none.")
        return torch.stack(scales).sum()
