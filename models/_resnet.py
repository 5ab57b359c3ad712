"""Residual networks for ImageNet, with the reference's head (He et al., arXiv:1512.03385).

Differs from the paper: LeakyReLU 0.05, orthogonal start, and a head that averages to 2x2 and has a hidden layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models._layers import activation, check_settings, dense_stack, init_orthogonal, scaled


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a strided 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = activation()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != width:
            conv = nn.Conv2d(inputs, width, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))
        self.act2 = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, inputs, h, w) to (batch, width, h / stride, w / stride), rounded up."""
        inner = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(inner + self.shortcut(x))


class ResNet(nn.Module):
    """`stem`, four stages of basic blocks, `pool`, `head`.

    Args:
        num_classes: number of logits.
        input_shape: (channels, height, width) of one sample.
        blocks: number of blocks in each stage.
        hidden: width of the head's hidden layer; 0 for the paper's head, one linear layer on the global average.
        small_stem: a 3x3 first layer without pooling in place of the 7x7 one, for pictures of 32x32.
        dropout: share dropped before each linear layer in training.
        width_multiplier: factor on every width but the number of classes.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, int, int],
        *,
        blocks: Sequence[int],
        hidden: int,
        small_stem: bool,
        dropout: float,
        width_multiplier: float,
    ) -> None:
        # A hidden width of 0 means "none" and is fine; any other one is checked like every width.
        check_settings(num_classes, input_shape, dropout=dropout, width_multiplier=width_multiplier, hidden=hidden or 1)
        super().__init__()
        widths = [scaled(64 * 2**stage, width_multiplier) for stage in range(len(blocks))]
        self.stem = _stem(input_shape[0], widths[0], small=small_stem)
        self.stages = residual_stages(BasicBlock, widths[0], widths, blocks)
        grid = 2 if hidden else 1
        self.pool = nn.AdaptiveAvgPool2d(grid)
        inner = [scaled(hidden, width_multiplier)] if hidden else []
        self.head = nn.Sequential(*dense_stack([widths[-1] * grid * grid, *inner, num_classes], dropout=dropout))
        init_orthogonal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, num_classes)."""
        return self.head(self.pool(self.stages(self.stem(x))).flatten(1))


def residual_stages(block: type[nn.Module], inputs: int, widths: Sequence[int], blocks: Sequence[int]) -> nn.Sequential:
    """Returns one stage per width; every stage but the first halves the picture in its first block."""
    stages = []
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        first = block(inputs, width, 1 if stage == 0 else 2)
        stages.append(nn.Sequential(first, *(block(width, width, 1) for _ in range(count - 1))))
        inputs = width
    return nn.Sequential(*stages)


def _stem(channels: int, width: int, *, small: bool) -> nn.Sequential:
    if small:
        conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(width), activation())
    conv = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
    # Padding keeps at least one pixel of even the smallest picture, so this pooling never has to be skipped.
    return nn.Sequential(conv, nn.BatchNorm2d(width), activation(), nn.MaxPool2d(3, stride=2, padding=1))
