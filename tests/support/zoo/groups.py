"""Convolutions in groups, and channels that are shuffled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.zoo.blocks import Head, conv
from tests.support.zoo.registry import case, picture


@case(picture(), 7)
def grouped() -> nn.Module:
    return nn.Sequential(conv(3, 8), conv(8, 12, groups=4), conv(12, 6, groups=2), Head(6))


@case(picture(), 19)
def depthwise() -> nn.Module:
    return nn.Sequential(
        conv(3, 6), conv(6, 6, groups=6), conv(6, 8, 1), conv(8, 16, groups=8), conv(16, 6, 1), Head(6)
    )


@case(picture(), 6)
def transposed() -> nn.Module:
    return nn.Sequential(
        conv(3, 6), nn.ConvTranspose2d(6, 8, 2, stride=2, groups=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 8, 3, groups=8), nn.ReLU(), nn.ConvTranspose2d(8, 4, 1), Head(4),
    )  # fmt: skip


@case(picture(), 10)
class InvertedResidual(nn.Module):
    """With squeeze-and-excite, hard activations, and layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.deep, self.narrow = (
            conv(3, 6),
            conv(6, 12, 1),
            conv(12, 12, groups=12),
            nn.Conv2d(12, 6, 1),
        )
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.gamma, self.head = nn.Parameter(torch.randn(6, 1, 1)), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x) * 1.0, inplace=True)
        y = self.deep(self.wide(x))
        y = y * F.hardsigmoid(self.excite(torch.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return self.head(x + self.gamma * self.narrow(y))


@case(picture(), 6)
class Shuffled(nn.Module):
    """ShuffleNet's halves, by hand and by the module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.after, self.head = conv(3, 12), conv(6, 6), conv(12, 12, groups=3), Head(12)
        self.shuffle = nn.ChannelShuffle(3)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.stem(x).chunk(2, dim=1)
        x = torch.cat((one, self.branch(two)), 1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.head(self.shuffle(self.after(x)))
