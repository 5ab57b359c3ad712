"""One layer behind the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.support.zoo.blocks import Head, conv
from tests.support.zoo.registry import case, picture


@case(picture(), 14)
def plain() -> nn.Module:
    return nn.Sequential(conv(3, 6), conv(6, 8), Head(8))


@case(picture(), 12)
def flattened() -> nn.Module:
    return nn.Sequential(conv(3, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(80, 7), nn.ReLU(), nn.Linear(7, 4))


@case(picture(), 6)
def pooled_flatten() -> nn.Module:
    return nn.Sequential(conv(3, 6), nn.AdaptiveAvgPool2d(2), nn.Flatten(1), nn.BatchNorm1d(24), nn.Linear(24, 4))


@case(lambda: torch.randn(2, 3, 9, dtype=torch.float64), 6)
def one_dimensional() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.PReLU(6), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(18, 4)
    )


@case(lambda: torch.randn(2, 2, 4, 6, 6, dtype=torch.float64), 6)
def three_dimensional() -> nn.Module:
    return nn.Sequential(nn.Conv3d(2, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(2), nn.Flatten(),
                         nn.Linear(108, 4))  # fmt: skip


@case(picture(), 10)
class ByFunctions(nn.Module):
    """Parameters without modules."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.shift = nn.Parameter(torch.randn(6, 3, 3, 3)), nn.Parameter(torch.randn(6))
        self.first, self.second = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5, 4))
        self.scale = nn.Parameter(torch.randn(1, 6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(F.conv2d(x, self.kernel, self.shift)) * self.scale
        return torch.relu(x.sum((2, 3)) @ self.first) @ self.second


@case(picture(), 6)
def checkpointed() -> nn.Module:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = conv(3, 6), Head(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.body, x, use_reentrant=False))

    return Checkpointed()


@case(picture(), 14)
def frozen_prefix() -> nn.Module:
    network = plain()
    for parameter in network[0].parameters():
        parameter.requires_grad_(False)
    return network
