"""What the code of a forward method does besides computing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.support.zoo.blocks import Head, conv
from tests.support.zoo.registry import case, picture, rows


@case(rows(), 4)
class WritesInPlace(nn.Module):
    """Fills a tensor made in forward, in place, part by part."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.one(x), self.two(x)
        both = x.new_zeros(x.shape[0], x.shape[1], one.shape[-1] + two.shape[-1])
        both[..., : one.shape[-1]] = one
        both[..., one.shape[-1] :] = two.sigmoid_()
        return self.out(both)


@case(picture(), 6)
class AuxiliaryHead(nn.Module):
    """A second head that runs in training mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.more, self.head, self.aux = conv(3, 6), conv(6, 7), Head(7), Head(6)

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        out = self.head(self.more(x))
        return (out, self.aux(x)) if self.training else out


@case(picture(), 6)
class KeepsFeatures(nn.Module):
    """Leaves a tensor in an attribute: somebody may read it, so it must stay; `body` is free."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.more, self.head = conv(3, 6), conv(6, 7), Head(7)
        self.features: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.more(self.body(x))
        return self.head(self.features)


@case(picture(), 6)
class DependsOnData(nn.Module):
    """A branch on a value: cannot run without data."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = conv(3, 6), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if x.abs().max().item() > 1e9:
            x = x / 2
        return self.head(x)


@case(rows(), 8)
class CountsInTensors(nn.Module):
    """A number of tokens is a tensor where sizes are integers; reading it is an operation of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        count = torch.tensor(len(x)) + 1
        padding = x.new_zeros((len(x), count, x.shape[-1]))
        return self.leave(torch.cat([x, padding], dim=1).relu())


@case(rows(), 8)
class CountsChannels(nn.Module):
    """Frequencies are made of the width in forward; with channels gone they are others, which the plan must say."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        frequencies = torch.arange(x.shape[-1], device=x.device) / x.shape[-1]
        return self.leave((x + torch.sin(frequencies)).relu())
