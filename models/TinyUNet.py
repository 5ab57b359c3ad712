from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models._layers import check_settings, init_kaiming


class TinyUNet(nn.Module):
    """A small U-Net: two halvings, and what was seen before each joins again on the way up (arXiv:1505.04597).

    118,610 parameters for two classes of colour pictures. Differs from the paper: padded convolutions with batch
    normalisation, three scales instead of five, a nearest-neighbour step in place of each transposed convolution.

    Args:
        width: channels at the full size; each halving of the picture doubles them.
    """

    tasks = ("segmentation",)

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], *, width: int = 16) -> None:
        check_settings(num_classes, input_shape, width=width)
        super().__init__()
        self.at_full = _two_convolutions(input_shape[0], width)
        self.at_half = _two_convolutions(width, 2 * width)
        self.at_quarter = _two_convolutions(2 * width, 4 * width)
        self.up_to_half = _two_convolutions(4 * width + 2 * width, 2 * width)
        self.up_to_full = _two_convolutions(2 * width + width, width)
        self.output = nn.Conv2d(width, num_classes, 1)
        init_kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to scores of every pixel, (batch, num_classes, height, width)."""
        full = self.at_full(x)
        half = self.at_half(_halved(full))
        quarter = self.at_quarter(_halved(half))
        half = self.up_to_half(_joined(quarter, half))
        full = self.up_to_full(_joined(half, full))
        return self.output(full)


def _two_convolutions(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _halved(x: Tensor) -> Tensor:
    # Rounded up, so that a picture of one pixel keeps it.
    return F.max_pool2d(x, 2, ceil_mode=True)


def _joined(small: Tensor, large: Tensor) -> Tensor:
    """Enlarges the one to the size of the other, which an odd picture's is not twice, and puts them side by side."""
    enlarged = F.interpolate(small, size=large.shape[-2:])
    return torch.cat([enlarged, large], dim=1)
