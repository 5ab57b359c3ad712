"""Plain convolutional networks: a stack of convolutions and poolings, then linear layers.

A stack is written as a short plan: a number is a convolution of that width, `Conv` one with its own kernel and
stride, `POOL` a pooling that halves the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from models._layers import activation, dense_stack, init_orthogonal, scaled


class Conv(NamedTuple):
    """One convolution of a plan, padded so that stride 1 keeps the picture's size."""

    width: int
    kernel: int = 3
    stride: int = 1


POOL = "pool"
Plan = Sequence[int | Conv | str]
Shape = tuple[int, int, int]


class ConvNet(nn.Module):
    """`features` (convolutions), `pool` (to a fixed grid, or nothing), then `head` (linear layers).

    Args:
        num_classes: number of logits.
        input_shape: (channels, height, width) of one sample.
        plan: the convolutions and poolings, first to last.
        hidden: widths of the hidden linear layers.
        grid: side of the grid that the feature maps are averaged to; None leaves them as they are.
        norm: batch normalisation after each convolution, which then has no bias, and in the head.
        pool_kernel: side of the poolings' window; they always halve.
        dropout: share dropped before each linear layer in training.
        width_multiplier: factor on every width but the number of classes.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: Shape,
        *,
        plan: Plan,
        hidden: Sequence[int],
        grid: int | None = None,
        norm: bool = False,
        pool_kernel: int = 2,
        dropout: float,
        width_multiplier: float,
    ) -> None:
        super().__init__()
        self.features, (channels, height, width) = conv_stack(
            input_shape, plan, norm=norm, pool_kernel=pool_kernel, width_multiplier=width_multiplier
        )
        self.pool = nn.Identity() if grid is None else nn.AdaptiveAvgPool2d(grid)
        cells = height * width if grid is None else grid * grid
        inner = [scaled(size, width_multiplier) for size in hidden]
        self.head = nn.Sequential(*dense_stack([channels * cells, *inner, num_classes], dropout=dropout, norm=norm))
        init_orthogonal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, num_classes)."""
        return self.head(self.pool(self.features(x)).flatten(1))


def conv_stack(
    input_shape: Shape, plan: Plan, *, norm: bool, pool_kernel: int, width_multiplier: float
) -> tuple[nn.Sequential, Shape]:
    """Returns the layers of `plan` and the shape (channels, height, width) that they hand on.

    The size of the picture is followed along, so that a pooling which would empty it is left out and the first
    linear layer fits any picture.
    """
    channels, height, width = input_shape
    layers: list[nn.Module] = []
    for step in plan:
        if isinstance(step, str):
            # A pooling that would empty a small picture is skipped.
            if min(height, width) >= 2:
                layers.append(nn.MaxPool2d(pool_kernel, stride=2, padding=(pool_kernel - 1) // 2))
                height = _side_after(height, pool_kernel, stride=2)
                width = _side_after(width, pool_kernel, stride=2)
            continue
        conv = step if isinstance(step, Conv) else Conv(step)
        conv = conv._replace(width=scaled(conv.width, width_multiplier))
        layers += _conv_block(channels, conv, norm=norm)
        height = _side_after(height, conv.kernel, stride=conv.stride)
        width = _side_after(width, conv.kernel, stride=conv.stride)
        channels = conv.width
    return nn.Sequential(*layers), (channels, height, width)


def _conv_block(channels: int, conv: Conv, *, norm: bool) -> list[nn.Module]:
    padding = (conv.kernel - 1) // 2
    # A norm subtracts whatever bias the convolution adds, so only one of them has a shift.
    layer = nn.Conv2d(channels, conv.width, conv.kernel, stride=conv.stride, padding=padding, bias=not norm)
    if norm:
        return [layer, nn.BatchNorm2d(conv.width), activation()]
    return [layer, activation()]


def _side_after(side: int, kernel: int, *, stride: int) -> int:
    return (side + 2 * ((kernel - 1) // 2) - kernel) // stride + 1
