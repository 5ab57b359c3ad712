"""The thin residual networks for 32x32 pictures (He et al., arXiv:1512.03385, section 4.2).

As in the paper: ReLU, Kaiming start, shortcuts without parameters (option A). Depth 6n + 2 for n blocks a stage.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models._layers import check_settings, init_kaiming, scaled
from models._resnet import residual_stages


class PadShortcut(nn.Module):
    """Option A: every second pixel, the missing channels filled with zeros; no parameters.

    Written as a 1x1 convolution with a constant weight instead of a slice and a pad: the widths then stand in the
    shape of a buffer alone, where structured pruning can cut them, and not in integers of the code. The buffer is
    saved, since a pruned shortcut picks other channels than a fresh one.
    """

    pick: Tensor

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        # (width, inputs, 1, 1); a one at (c, c), nothing in the rows of the channels that are new.
        self.register_buffer("pick", torch.eye(width, inputs)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, inputs, h, w) to (batch, width, h / 2, w / 2), rounded up."""
        return F.conv2d(x, self.pick, stride=2)


class PlainBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut that is the identity, or option A where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Identity() if stride == 1 else PadShortcut(inputs, width)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, inputs, h, w) to (batch, width, h / stride, w / stride), rounded up."""
        inner = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(inner + self.shortcut(x))


class CifarResNet(nn.Module):
    """A 3x3 `stem`, three `stages` of blocks 16, 32 and 64 wide, the global average, one linear layer.

    Args:
        num_classes: number of logits.
        input_shape: (channels, height, width) of one sample.
        depth: layers with weights along the main path, 6n + 2.
        width_multiplier: factor on every width but the number of classes.
    """

    def __init__(
        self, num_classes: int, input_shape: tuple[int, int, int], *, depth: int, width_multiplier: float
    ) -> None:
        check_settings(num_classes, input_shape, width_multiplier=width_multiplier)
        super().__init__()
        widths = [scaled(width, width_multiplier) for width in (16, 32, 64)]
        conv = nn.Conv2d(input_shape[0], widths[0], 3, padding=1, bias=False)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(widths[0]), nn.ReLU())
        self.stages = residual_stages(PlainBlock, widths[0], widths, [(depth - 2) // 6] * 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(widths[-1], num_classes)
        init_kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, num_classes)."""
        return self.head(self.pool(self.stages(self.stem(x))).flatten(1))
