from __future__ import annotations

from models._convnet import POOL, ConvNet
from models._layers import check_settings


class Conv6(ConvNet):
    """Six 3x3 convolutions and three linear layers, after the lottery ticket's Conv-6 (arXiv:1803.03635).

    1,802,432 weights on CIFAR-10. Differs from the paper: average pooling to 3x3 before the linear layers, LeakyReLU
    0.05, orthogonal start.

    Args:
        norm: batch normalisation after every hidden layer.
        dropout: share of the inputs of each linear layer dropped in training, in [0, 1).
        width_multiplier: factor on every hidden width, above 0.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, int, int],
        *,
        norm: bool = False,
        dropout: float = 0.3,
        width_multiplier: float = 1.0,
    ) -> None:
        check_settings(num_classes, input_shape, dropout=dropout, width_multiplier=width_multiplier)
        super().__init__(
            num_classes,
            input_shape,
            plan=(64, 64, POOL, 128, 128, POOL, 256, 256),
            grid=3,
            hidden=(256, 256),
            norm=norm,
            dropout=dropout,
            width_multiplier=width_multiplier,
        )
