import torch
from torch import Tensor

from losses._penalties import SparsityLoss, checked, hoyer_square
from pruning import PrunableNetwork


class HoyerSquare(SparsityLoss):
    """Cross-entropy and (sum |w|)^2 / sum w^2 of every layer's weight (Yang, Wen and Li 2020, arXiv:1908.09979).

    The penalty lies between 1 (one weight) and n (n equal ones), whatever the scale: it pushes weights that are small
    for their layer to zero and leaves large ones alone. It ends with the first pruning event.

    Args:
        hoyer_reg: strength of the penalty.
    """

    def __init__(self, *, hoyer_reg: float = 1e-5) -> None:
        self.strength = checked("hoyer_reg", hoyer_reg)

    def measure(self, network: PrunableNetwork) -> Tensor:
        weights = [weight for _, weight in network.weights()]
        values = []
        for weight in weights:
            sizes = weight.abs()  # of complex weights too
            values.append(hoyer_square(sizes.sum(), sizes.square().sum()).to(weights[0].device))
        return torch.stack(values).sum()
