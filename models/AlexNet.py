from __future__ import annotations

from models._convnet import POOL, Conv, ConvNet
from models._layers import check_settings

# From this side on a picture can bear the paper's stride of 4 in its first layer.
LARGE_SIDE = 128


class AlexNet(ConvNet):
    """AlexNet in its one-column form: five convolutions, three linear layers (arXiv:1404.5997).

    Differs from the paper: pictures under 128 pixels pass the first layer with stride 2 and are averaged to 2x2
    instead of 6x6 before the linear layers; LeakyReLU 0.05, orthogonal start.

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
        large = min(input_shape[1:]) >= LARGE_SIDE
        stem = Conv(64, kernel=11, stride=4 if large else 2)
        super().__init__(
            num_classes,
            input_shape,
            plan=(stem, POOL, Conv(192, 5), POOL, 384, 256, 256, POOL),
            grid=6 if large else 2,
            pool_kernel=3,
            hidden=(4096, 4096),
            dropout=dropout,
            width_multiplier=width_multiplier,
        )
