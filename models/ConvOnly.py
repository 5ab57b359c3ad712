from __future__ import annotations

from torch import Tensor, nn

from models._convnet import POOL, conv_stack
from models._layers import check_settings, init_orthogonal


class ConvOnly(nn.Module):
    """Convolutions and nothing else: six 3x3 layers, then a 1x1 layer to the classes, averaged over the picture.

    After the All Convolutional Net (Springenberg et al., arXiv:1412.6806), with max pooling for its strides. There is
    no linear layer, so a criterion that leans on one shows here.

    Args:
        dropout: share of the inputs of the last layer dropped in training, in [0, 1).
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
        super().__init__()
        plan = (64, 64, POOL, 128, 128, POOL, 256, 256)
        self.features, (channels, _, _) = conv_stack(
            input_shape, plan, norm=False, pool_kernel=2, width_multiplier=width_multiplier
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        init_orthogonal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, num_classes)."""
        return self.classifier(self.dropout(self.features(x))).mean((2, 3))
