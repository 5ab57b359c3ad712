"""Small networks, each with one way of moving channels about. `NETWORKS` lists them by name.

`exact=False` marks those where part of the nodes changes a statistic (layer norm); the flagged nodes are then left out
of equality tests. `pinned` names what has to stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torchvision.ops import DeformConv2d


class Case(NamedTuple):
    """A network and what it is called with; `least` is how many nodes must be prunable."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    least: int = 1


NETWORKS: dict[str, Case] = {}


def picture(channels: int = 3, side: int = 8) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, channels, side, side, dtype=torch.float64)


def rows(width: int = 6, length: int = 5) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, length, width, dtype=torch.float64)


def tokens(length: int = 5) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, 11, (2, length))


def case(inputs: Callable[[], Any], least: int = 1) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Enters a builder or a module class into `NETWORKS`."""

    def enter(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        NETWORKS[build.__name__] = Case(build, inputs, least)
        return build

    return enter


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


# -- plain -------------------------------------------------------------------------------------------------------------


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


# -- joins -------------------------------------------------------------------------------------------------------------


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


# -- groups ------------------------------------------------------------------------------------------------------------


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


# -- moves -------------------------------------------------------------------------------------------------------------


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


# -- other norms and parametrisations ----------------------------------------------------------------------------------


@case(picture(), 8)
def instance_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.ReLU(), nn.Conv2d(6, 8, 3),
                         nn.GroupNorm(8, 8), nn.ReLU(), Head(8))  # fmt: skip


@case(rows(8, 6), 7)
class SumsTokens(nn.Module):
    """Where a token is gone, the bias of a norm over channels would have stood: their sum is not exact."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm, self.out = nn.Linear(6, 7), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.tokens(x.transpose(1, 2))).sum(2))


@case(picture(), 6)
def group_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), conv(8, 6), Head(6))


@case(picture(), 12)
def weight_norm() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), nn.ReLU(),
                         parametrizations.weight_norm(nn.Conv2d(6, 8, 3)), nn.ReLU(), Head(8))  # fmt: skip


@case(picture(), 12)
def weight_norm_of_old() -> nn.Module:
    return nn.Sequential(torch.nn.utils.weight_norm(nn.Conv2d(3, 6, 3)), nn.ReLU(), conv(6, 6), Head(6))


@case(picture(), 12)
def spectral_norm() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(3, 6, 3)), nn.ReLU(),
                         parametrizations.spectral_norm(nn.Conv2d(6, 8, 3)), nn.ReLU(), Head(8))  # fmt: skip


@case(rows(), 6)
class RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.up, self.down = nn.Linear(6, 8), nn.RMSNorm(8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.out(x + self.down(F.gelu(self.up(self.norm(x)))))


class Standardised(nn.Conv2d):
    """Weight standardisation: a statistic over the input channels of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / (weight.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-5), self.bias)


@case(picture(), 8)
def weight_standardised() -> nn.Module:
    return nn.Sequential(Standardised(3, 6, 3), nn.ReLU(), Standardised(6, 8, 3), nn.ReLU(), Head(8))


@case(picture(), 6)
class FrozenNorm(nn.Module):
    """A norm of buffers, as detection backbones have it, and a channel gate that mixes by softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Conv2d(3, 6, 3), Head(6)
        for name in ("weight", "bias", "mean", "var"):
            self.register_buffer(name, torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.reshape(1, -1, 1, 1) * (self.var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return self.head(self.one(x) * scale + self.bias.reshape(1, -1, 1, 1) - self.mean.reshape(1, -1, 1, 1) * scale)


# -- sequences and attention -------------------------------------------------------------------------------------------


@case(rows(), 7)
class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = (
            nn.LSTM(6, 7, num_layers=2, batch_first=True),
            nn.GRU(7, 5, batch_first=True, bidirectional=True),
        )
        self.out = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.lstm(x)
        x, _ = self.gru(x)
        return self.out(x[:, -1])


@case(rows(), 6)
class CellByHand(nn.Module):
    """A cell called step by step; its first state is made in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.hidden, self.out = nn.GRUCell(6, 7), 7, nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], self.hidden, dtype=x.dtype, device=x.device)
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.out(state)


@case(tokens(), 4)
class TiedTokens(nn.Module):
    """Embedding and classifier share a weight; positions come from a table."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(11, 8), nn.Parameter(torch.randn(1, 5, 8))
        self.up, self.down, self.out = nn.Linear(8, 10), nn.Linear(10, 8), nn.Linear(8, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) * 2.0 + self.place
        return self.out(x + self.down(torch.relu(self.up(x))))


class Attention(nn.Module):
    """By hand: one layer for queries, keys and values, viewed to (batch, tokens, 3, heads, width)."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads, self.inner, self.scale = heads, inner, inner**-0.5
        self.qkv, self.proj = nn.Linear(width, 3 * heads * inner), nn.Linear(heads * inner, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, self.inner).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        weights = ((query * self.scale) @ key.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(batch, length, self.heads * self.inner))


@case(rows(8), 6)
class AttentionByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.attention, self.out = nn.Linear(8, 8), Attention(8, 2, 6), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.out((x + self.attention(x)).mean(1))


@case(rows(8), 4)
class WidthFromInput(nn.Module):
    """Swin's way: the head width follows from the embedding, so projections must shrink with it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.qkv, self.proj, self.out = nn.Linear(8, 8), nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        batch, length, width = x.shape
        query, key, value = self.qkv(x).reshape(batch, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1)).softmax(-1)
        return self.out(x + self.proj((weights @ value).transpose(1, 2).reshape(batch, length, width)))


@case(rows(8), 6)
class GroupedQuery(nn.Module):
    """Four query heads share two key heads; torch's own product, so the scale follows the width."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 6
        self.query, self.key, self.value = nn.Linear(8, 24), nn.Linear(8, 12), nn.Linear(8, 12)
        self.out = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        query = self.query(x).view(batch, length, 4, self.width).transpose(1, 2)
        key, value = (
            part(x).view(batch, length, 2, self.width).transpose(1, 2)[:, :, None]
            .expand(batch, 2, 2, length, self.width).reshape(batch, 4, length, self.width)
            for part in (self.key, self.value)
        )  # fmt: skip
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


@case(rows(8), 10)
def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 4))


@case(lambda: (torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 3, 6, dtype=torch.float64)), 2)
class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.other = nn.Linear(8, 8), nn.Linear(6, 7)
        self.attention, self.out = nn.MultiheadAttention(8, 2, kdim=7, vdim=7, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.enter(x), self.other(y)
        return self.out(self.attention(x, y, y)[0] + x)


@case(rows(8), 5)
class LinearAttention(nn.Module):
    """No softmax: keys pass a function that does not vanish at zero, so removing a channel is not exact."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 6) for _ in range(3))
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        query, key = F.elu(self.query(x)) + 1, F.elu(self.key(x)) + 1
        return self.out(query @ (key.transpose(-2, -1) @ self.value(x)))


@case(rows(), 7)
class Mixture(nn.Module):
    """Experts whose weights are stacked into one tensor, mixed by a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (
            nn.Linear(6, 3),
            nn.Parameter(torch.randn(3, 6, 7)),
            nn.Parameter(torch.randn(3, 7, 4)),
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("bnc,ech->bneh", x, self.up).relu()
        return torch.einsum("bneh,eho,bne->bno", hidden, self.down, self.gate(x).softmax(-1))


@case(rows(), 7)
class BilinearHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.mix, self.out = nn.Linear(6, 5), nn.Linear(6, 7), nn.Bilinear(5, 7, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.mix(torch.tanh(self.one(x)), torch.relu(self.two(x)))))


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


from tests.support import networks_of_others  # noqa: E402, F401 - enters more networks, by the same `case`
