import torch
from torch import Tensor

from losses._penalties import SparsityLoss, checked, hoyer_square, node_squares
from pruning import PrunableNetwork
from pruning.scores.per_node import over_group


class GroupHoyerSquare(SparsityLoss):
    """Cross-entropy and Hoyer-Square of each layer's node norms (Yang, Wen and Li 2020, arXiv:1908.09979).

    (sum |n|)^2 / sum n^2 over the nodes of a layer, where n is the Euclidean norm of all that goes with a node: rows,
    columns and norm scales. It ends with the first pruning event.

    Args:
        hoyer_reg: strength of the penalty.
    """

    def __init__(self, *, hoyer_reg: float = 1e-5) -> None:
        self.strength = checked("hoyer_reg", hoyer_reg)

    def measure(self, network: PrunableNetwork) -> Tensor:
        squares = node_squares(network)
        # The slope of a root at 0 is infinite; a node that is all zero is left alone.
        norms = torch.where(squares > 0, squares, 1).sqrt() * (squares > 0)
        # size * mean^2 / mean of squares is a layer's penalty, and each of its nodes has an equal share of it.
        return hoyer_square(over_group(network, norms), over_group(network, squares)).sum()
