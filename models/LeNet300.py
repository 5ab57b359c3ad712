from __future__ import annotations

from models._feedforward import FeedForward
from models._layers import check_settings


class LeNet300(FeedForward):
    """LeNet-300-100: two hidden layers, the classic of pruning papers (LeCun et al. 1998).

    Differs from the paper in its activation (LeakyReLU 0.05) and its orthogonal start.

    Args:
        dropout: share of each hidden layer's outputs dropped in training, in [0, 1). Pruning regularises a network
            this small enough, so the default is 0.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], *, dropout: float = 0.0) -> None:
        check_settings(num_classes, input_shape, axes=None, dropout=dropout)
        super().__init__(num_classes, input_shape, hidden=(300, 100), dropout=dropout)
