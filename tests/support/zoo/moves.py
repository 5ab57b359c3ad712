"""Channels that are moved about between layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.zoo.blocks import Head, conv
from tests.support.zoo.registry import case, picture, rows


@case(picture(), 8)
class PixelShuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = conv(3, 16), conv(4, 5), conv(20, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.three(F.pixel_unshuffle(self.two(F.pixel_shuffle(self.one(x), 2)), 2)))


@case(picture(), 6)
class Gated(nn.Module):
    """GLU, halves by slices of the width, and by split sizes that the module keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(3, 12), nn.Linear(6, 10), nn.Linear(5, 9)
        self.sizes, self.out = [4, 5], nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.one(x.mean((2, 3))), -1)
        x = self.two(x)
        half = x.shape[-1] // 2
        x = torch.tanh(x[:, :half]) * x[:, half:]
        small, large = self.three(x).split(self.sizes, -1)
        return self.out(torch.cat([torch.relu(large), torch.tanh(small)], -1))


@case(rows(), 8)
class MovedAbout(nn.Module):
    """Permutations, flips, einsum, broadcasting, a rolled picture side."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Parameter(torch.randn(8, 5))
        self.out = nn.Linear(5, 4)
        self.shift = nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x) + self.shift).movedim(-1, 1)
        x = torch.roll(x, 1, 2).flip(1).flip(1).transpose(1, 2)
        x = torch.einsum("bnc,cd->bnd", x, self.two)
        return self.out(F.silu(x).sum(1))


@case(rows(), 5)
class RollsChannels(nn.Module):
    """What shifts, picks or sorts channels must stay; the rest may go."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5), nn.Linear(5, 4)
        self.register_buffer("order", torch.randperm(8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.roll(self.one(x), 3, -1)
        x = self.two(x[..., self.order])
        return self.out(torch.relu(self.three(x.sort(-1)[0])))


@case(rows(), 5)
class HardCoded(nn.Module):
    """Numbers in the code: a view of fixed sizes and slices at fixed places; `three` is free."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.out = nn.Linear(6, 8), nn.Linear(8, 9), nn.Linear(7, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).view(2, 5, 2, 4).transpose(2, 3).reshape(2, 5, 8)
        return self.out(torch.relu(self.three(torch.relu(self.two(x))[..., 1:8])))


@case(picture(), 6)
class Unfolded(nn.Module):
    """A convolution by im2col and a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.weight, self.head = conv(3, 6), nn.Parameter(torch.randn(5, 54)), Head(5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.unfold(self.one(x), 3, padding=1)
        return self.head((self.weight @ x).relu().reshape(2, -1, 8, 8))
