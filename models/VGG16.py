from __future__ import annotations

from models._convnet import POOL, ConvNet
from models._layers import check_settings


class VGG16(ConvNet):
    """VGG-16 with batch normalisation in all 15 hidden layers (Simonyan & Zisserman, arXiv:1409.1556).

    50,665,152 weights on CIFAR-10. Differs from the paper: the last convolution is 1024 wide, average pooling to 2x2
    before the linear layers, LeakyReLU 0.05, orthogonal start.

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
            plan=(
                *(64, 64, POOL),
                *(128, 128, POOL),
                *(256, 256, 256, POOL),
                *(512, 512, 512, POOL),
                *(512, 512, 1024, POOL),
            ),
            grid=2,
            norm=True,
            hidden=(4096, 4096),
            dropout=dropout,
            width_multiplier=width_multiplier,
        )
