"""What many networks of the zoo are made of."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def conv(ins: int, outs: int, size: int = 3, **more: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(ins, outs, size, padding=more.pop("padding", size // 2), **more), nn.BatchNorm2d(outs), nn.ReLU()
    )


class Head(nn.Module):
    """Global pooling and a classifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class Last(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.sum(1))
