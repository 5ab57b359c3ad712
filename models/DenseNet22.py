"""The small densely connected network DenseNet-22 for 32x32 pictures (Huang et al., arXiv:1608.06993)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models._layers import check_settings, init_kaiming, scaled

LAYERS = 6  # in each of three blocks: with the first convolution, two transitions and the head, 22
GROWTH = 12


class DenseLayer(nn.Module):
    """Norm, ReLU and a 3x3 convolution, whose outputs are joined to its inputs."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, inputs, h, w) to (batch, inputs + growth, h, w)."""
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class Transition(nn.Module):
    """Norm, ReLU, a 1x1 convolution of as many outputs, and half the height and width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, width, h, w) to (batch, width, h / 2, w / 2), rounded up."""
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2, ceil_mode=True)


class DenseNet22(nn.Module):
    """DenseNet-22: three dense blocks of six layers, growth 12 (Huang et al., arXiv:1608.06993).

    The paper's plain form, without bottlenecks and compression; 270,706 parameters on CIFAR-10.

    Args:
        width_multiplier: factor on every hidden width, above 0.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, int, int], *, width_multiplier: float = 1.0) -> None:
        check_settings(num_classes, input_shape, width_multiplier=width_multiplier)
        super().__init__()
        width, growth = scaled(16, width_multiplier), scaled(GROWTH, width_multiplier)
        layers: list[nn.Module] = [nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False)]
        for block in range(3):
            layers += [Transition(width)] if block else []
            layers += [DenseLayer(width + place * growth, growth) for place in range(LAYERS)]
            width += LAYERS * growth
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, num_classes)
        init_kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, num_classes)."""
        return self.head(self.pool(F.relu(self.norm(self.layers(x)))).flatten(1))
