from __future__ import annotations

from models._feedforward import FeedForward
from models._layers import check_settings


class MLP5(FeedForward):
    """Five linear layers, four of them hidden, equally wide and normalised; 1,192,960 weights on MNIST.

    Args:
        hidden: width of each of the four hidden layers.
        dropout: share of each hidden layer's outputs dropped in training, in [0, 1).
        norm: batch normalisation after every hidden layer.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, ...],
        *,
        hidden: int = 512,
        dropout: float = 0.3,
        norm: bool = True,
    ) -> None:
        check_settings(num_classes, input_shape, axes=None, dropout=dropout, hidden=hidden)
        super().__init__(num_classes, input_shape, hidden=[hidden] * 4, dropout=dropout, norm=norm)
