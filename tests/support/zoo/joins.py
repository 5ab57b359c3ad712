"""Streams that part and meet again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from tests.support.zoo.blocks import Head, conv
from tests.support.zoo.registry import case, picture, rows


@case(picture(), 10)
class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = conv(3, 6), conv(6, 5), conv(5, 6), Head(6)
        self.last = nn.Conv2d(5, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.last(self.one(x))
        y += x
        return self.head(y + self.two(self.one(y)))


@case(picture(), 12)
class OptionA(nn.Module):
    """The parameter-free shortcut: strided, padded with zero channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = conv(3, 6), conv(6, 7, stride=2), conv(7, 10)
        self.head = Head(10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.two(self.one(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))


@case(picture(), 15)
class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([conv(3, 6), conv(9, 5), conv(14, 4)])
        self.head = Head(18)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = torch.cat([x, part(x)], 1)
        return self.head(x)


@case(picture(), 12)
class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = conv(3, 6), conv(6, 8)
        self.up, self.after = nn.ConvTranspose2d(8, 5, 2, stride=2), conv(11, 6)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        x = self.up(self.deep(F.max_pool2d(skip, 2)))
        return self.last(self.after(torch.cat([skip, F.interpolate(x, scale_factor=1.0)], 1)))


@case(picture(), 12)
class C2f(nn.Module):
    """The split-and-concatenate block of YOLOv8."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave, self.head = conv(3, 12, 1), conv(24, 8, 1), Head(8)
        self.parts = nn.ModuleList([nn.Sequential(conv(6, 6), conv(6, 6)) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        found = list(self.enter(x).chunk(2, 1))
        for part in self.parts:
            found.append(part(found[-1]) + found[-1])
        return self.head(self.leave(torch.cat(found, 1)))


@case(picture(), 19)
class Deformable(nn.Module):
    """Convolutions whose kernels look where another layer says; the second has two groups of places."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = conv(3, 8), Head(6)
        self.places, self.more = nn.Conv2d(8, 18, 3, padding=1), nn.Conv2d(10, 36, 3, padding=1)
        self.one, self.two = DeformConv2d(8, 10, 3, padding=1), DeformConv2d(10, 6, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = self.one(x, self.places(x)).relu()
        return self.head(self.two(x, self.more(x)).relu())


@case(rows(6, 9), 16)
class SelectiveScan(nn.Module):
    """The block of a state-space model: its step widths are written into the code, its inner width is not."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 32), nn.Linear(16, 6)
        self.mix = nn.Conv1d(16, 16, 4, groups=16, padding=3)
        self.steps, self.widen = nn.Linear(16, 10), nn.Linear(2, 16)
        self.decay, self.skip = nn.Parameter(torch.rand(16, 4)), nn.Parameter(torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.enter(x).chunk(2, -1)
        x = F.silu(self.mix(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        step, into, out = self.steps(x).split([2, 4, 4], -1)
        step = F.softplus(self.widen(step))[..., None]
        kept, new = torch.exp(-step * self.decay), step * into[:, :, None] * x[..., None]
        state, found = torch.zeros_like(new[:, 0]), []
        for turn in range(x.shape[1]):
            state = kept[:, turn] * state + new[:, turn]
            found.append((state * out[:, turn, None]).sum(-1))
        return self.leave((torch.stack(found, 1) + x * self.skip) * F.silu(gate))


@case(lambda: (torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 7, dtype=torch.float64)), 10)
class TwoInTwoOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.see, self.read = conv(3, 6), nn.Sequential(nn.Linear(7, 6), nn.Tanh())
        self.one, self.two = nn.Linear(6, 3), nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        both = self.see(x).mean((2, 3)) * self.read(y)
        return self.one(both), self.two(both)


@case(lambda: {"picture": torch.randn(2, 3, 8, 8, dtype=torch.float64), "scale": 2.0}, 6)
class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = conv(3, 6), Head(6)

    def forward(self, *, picture: Tensor, scale: float) -> dict[str, list[Tensor]]:
        return {"logits": [self.head(self.body(picture) * scale)]}


@dataclass
class Result:
    logits: Tensor
    features: Tensor


@case(picture(), 5)
class DataclassOutput(nn.Module):
    """Features that are returned must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = conv(3, 5), conv(5, 6), Head(6)

    def forward(self, x: Tensor) -> Result:
        features = self.two(self.one(x))
        return Result(self.head(features), features)


@case(picture(6), 6)
class SharedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.same, self.head = conv(6, 6), nn.Conv2d(6, 6, 3, padding=1), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.same(torch.relu(self.same(self.enter(x))))))


@case(picture(), 6)
class Stacked(nn.Module):
    """Branches stacked on a new dimension and summed (selective kernels, re-parametrised blocks)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = conv(3, 6), conv(3, 6, 1), Head(6)
        self.mix = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.one(x), self.two(x)], 1)
        return self.head((both * self.mix.view(1, 2, 1, 1, 1)).sum(1))
