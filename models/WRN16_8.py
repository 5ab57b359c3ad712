"""The wide residual network WRN-16-8 (Zagoruyko and Komodakis, arXiv:1605.07146)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models._layers import check_settings, init_kaiming, scaled


class PreActivationBlock(nn.Module):
    """Norm, ReLU and a 3x3 convolution, twice, beside a shortcut: the identity, or a 1x1 convolution."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        same = stride == 1 and inputs == width
        self.shortcut = None if same else nn.Conv2d(inputs, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, inputs, h, w) to (batch, width, h / stride, w / stride), rounded up."""
        active = F.relu(self.bn1(x))
        inner = self.conv2(F.relu(self.bn2(self.conv1(active))))
        # As the authors do: where the shape changes, the shortcut starts behind the first norm.
        return inner + (x if self.shortcut is None else self.shortcut(active))


class WRN16_8(nn.Module):
    """WRN-16-8: residual, 16 layers deep, 8 times as wide (Zagoruyko & Komodakis, arXiv:1605.07146).

    As in the paper, without dropout; 10,961,370 parameters on CIFAR-10.

    Args:
        width_multiplier: factor on every hidden width, above 0.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, int, int], *, width_multiplier: float = 1.0) -> None:
        check_settings(num_classes, input_shape, width_multiplier=width_multiplier)
        super().__init__()
        widths = [scaled(width, width_multiplier) for width in (16, 128, 256, 512)]
        self.stem = nn.Conv2d(input_shape[0], widths[0], 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        for stage, (inputs, width) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            blocks += [PreActivationBlock(inputs, width, 2 if stage else 1), PreActivationBlock(width, width, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(widths[-1], num_classes)
        init_kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, num_classes)."""
        return self.head(self.pool(F.relu(self.norm(self.blocks(self.stem(x))))).flatten(1))
