from __future__ import annotations

from models._convnet import POOL, Conv, ConvNet
from models._layers import check_settings


class LeNet5(ConvNet):
    """LeNet-5 in the modern reading: three 5x5 convolutions, two linear layers (LeCun et al. 1998).

    142,110 weights on MNIST. Differs from the paper: padded convolutions, all maps connected, max pooling, LeakyReLU
    0.05, orthogonal start.

    Args:
        dropout: share of the inputs of each linear layer dropped in training, in [0, 1).
        width_multiplier: factor on every hidden width, above 0.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, int, int],
        *,
        dropout: float = 0.3,
        width_multiplier: float = 1.0,
    ) -> None:
        check_settings(num_classes, input_shape, dropout=dropout, width_multiplier=width_multiplier)
        super().__init__(
            num_classes,
            input_shape,
            plan=(Conv(6, 5), POOL, Conv(16, 5), POOL, Conv(120, 5), POOL),
            hidden=(84,),
            dropout=dropout,
            width_multiplier=width_multiplier,
        )
