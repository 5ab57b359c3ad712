from __future__ import annotations

from models._resnet import ResNet


class ResNet18(ResNet):
    """ResNet-18 with the ImageNet stem and a hidden layer in its head (He et al., arXiv:1512.03385).

    11,693,760 weights with 10 classes. Differs from the paper: average pooling to 2x2 and a hidden layer in the head,
    LeakyReLU 0.05, orthogonal start.

    Args:
        hidden: width of the head's hidden layer; 0 for the paper's head, one linear layer on the global average.
        small_stem: a 3x3 first layer without pooling in place of the 7x7 one with it; for pictures of about 32x32.
        dropout: share of the inputs of each linear layer dropped in training, in [0, 1).
        width_multiplier: factor on every hidden width, above 0.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, int, int],
        *,
        hidden: int = 256,
        small_stem: bool = False,
        dropout: float = 0.3,
        width_multiplier: float = 1.0,
    ) -> None:
        super().__init__(
            num_classes,
            input_shape,
            blocks=(2, 2, 2, 2),
            hidden=hidden,
            small_stem=small_stem,
            dropout=dropout,
            width_multiplier=width_multiplier,
        )
