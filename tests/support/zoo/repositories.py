"""Networks as they stand in well-known repositories, cut down: what their code does with widths is what matters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from tests.support.zoo.blocks import Head, Last, conv
from tests.support.zoo.registry import case, picture, tokens


@case(picture(side=8), 8 + 6 + 8 + 6)
class UnetThatCompares(nn.Module):
    """A skip of another shape is resized: code that compares widths, so both sides must shrink alike."""

    def __init__(self) -> None:
        super().__init__()
        self.downs = nn.ModuleList([conv(3, 6), conv(6, 8)])
        self.bottom = conv(8, 16)
        self.ups = nn.ModuleList([nn.ConvTranspose2d(16, 8, 2, 2), conv(16, 8), nn.ConvTranspose2d(8, 6, 2, 2)])
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.ups[0](self.bottom(x))
        for skip, layer in zip(skips[::-1], (self.ups[1:], nn.Identity()), strict=True):
            if x.shape != skip.shape:
                x = F.interpolate(x, skip.shape[2:])
            x = torch.cat((skip, x), 1)
            for one in layer if isinstance(layer, nn.ModuleList) else ():
                x = one(x)
        return self.last(x)


@case(picture(), 4 + 6)
class GateOfAnotherWidth(nn.Module):
    """Selective kernels: the gate takes its width from the picture that went in, not from the one it gates."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = conv(3, 12), conv(12, 12, groups=3), Head(12)
        self.squeeze, self.gate = nn.Linear(12, 6), nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.branch(x)
        gate = self.gate(self.squeeze(y.mean((2, 3))).relu()).sigmoid().view(x.size(0), x.size(1), 1, 1)
        return self.head(y * gate)


@case(lambda: torch.randn(2, 4, 12, dtype=torch.float64), 8 + 6 + 10)
class WaveNet(nn.Module):
    """Several layers split their outputs by the same integer."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.stem, self.last = 6, nn.Conv1d(4, 8, 1), nn.Conv1d(10, 4, 1)
        self.dilated = nn.ModuleList([nn.Conv1d(8, 12, 2, dilation=2**i) for i in range(3)])
        self.stay = nn.ModuleList([nn.Conv1d(6, 8, 1) for _ in range(3)])
        self.skip = nn.ModuleList([nn.Conv1d(6, 10, 1) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.stem(x), torch.zeros((), dtype=x.dtype)
        for dilated, stay, skip in zip(self.dilated, self.stay, self.skip, strict=True):
            one, two = torch.split(dilated(F.pad(x, (dilated.dilation[0], 0))), self.width, 1)
            gated = torch.tanh(one) * torch.sigmoid(two)
            x, skips = x + stay(gated), skips + skip(gated)
        return self.last(skips.relu())


@case(picture(), 16 + 4)
class Res2(nn.Module):
    """Each part of a layer's channels sees the one before; layers in a list, whose width the block keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inside, self.outside, self.head = conv(3, 16), conv(16, 20, 1), conv(20, 16, 1), Head(16)
        self.convs, self.width = nn.ModuleList([conv(5, 5) for _ in range(3)]), 5

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        *parts, last = torch.split(self.inside(x), self.width, 1)
        made: list[Tensor] = []
        for layer, part in zip(self.convs, parts, strict=True):
            made.append(layer(part + made[-1] if made else part))
        return self.head(x + self.outside(torch.cat([*made, last], 1)))


@case(picture(), 7)
class Ghost(nn.Module):
    """Cheap copies of channels, one of them left over."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.cheap, self.head, self.width = conv(3, 7, 1), conv(7, 7, groups=7), Head(13), 13

    def forward(self, x: Tensor) -> Tensor:
        x = self.own(x)
        return self.head(torch.cat([x, self.cheap(x)], 1)[:, : self.width])


@case(tokens(), 16 + 2)
class Rotary(nn.Module):
    """Turned queries and keys; the angles are buffers that no state dict holds."""

    cos: Tensor
    sin: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out, self.head = nn.Embedding(11, 16), nn.Linear(16, 48), nn.Linear(16, 16), Last(16)
        angles = torch.outer(torch.arange(8.0), torch.tensor([1.0, 0.1])).repeat(1, 2)
        for name, table in (("cos", angles.cos()), ("sin", angles.sin())):
            self.register_buffer(name, table, persistent=False)

    def turned(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        around = torch.cat((-x[..., half:], x[..., :half]), -1)
        return x * self.cos[: x.shape[-2]] + around * self.sin[: x.shape[-2]]

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        b, t, _ = x.shape
        q, k, v = (part.view(b, t, 4, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        scores = self.turned(q) @ self.turned(k).transpose(-2, -1) / 2
        return self.head(x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, -1)))


@case(tokens(), 12 + 3 * 8)
class Experts(nn.Module):
    """Every token goes to the experts that its gate picks; what they say is added where the token stands."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate, self.last = nn.Embedding(11, 12), nn.Linear(12, 3), nn.Linear(12, 4)
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 12, bias=False)) for _ in range(3)]
        )

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words).flatten(0, 1)
        share, chosen = self.gate(x).softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, places = torch.where(chosen == number)
            out.index_add_(0, rows, expert(x[rows]) * share[rows, places, None])
        return self.last(x + out)


@case(tokens(), 12)
class PicksAndPuts(nn.Module):
    """Masked auto-encoding: tokens are picked by a table, others are put in their place, and all are put back."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encode, self.last = nn.Embedding(11, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.mask = nn.Parameter(torch.randn(1, 1, 12))

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        b, t, d = x.shape
        order = torch.arange(t).flip(0).repeat(b, 1)
        seen = self.encode(torch.gather(x, 1, order[:, :3].unsqueeze(-1).repeat(1, 1, d)))
        x = torch.cat([seen, self.mask.expand(b, t - 3, -1)], 1).gather(1, order.unsqueeze(-1).expand(-1, -1, d))
        x = torch.zeros_like(x).scatter_add(1, order.unsqueeze(-1).expand(-1, -1, d), x)
        x = x.index_fill(1, torch.tensor([4]), 0).index_copy(1, torch.tensor([0]), x[:, 1:2])
        x[:, torch.tensor([1, 2])] = self.mask[:, 0]
        x[words == 5] *= 2
        return self.last(x)


@case(picture(side=4), 5 + 10)
class MixesTokens(nn.Module):
    """MLP-Mixer with convolutions of one place over tokens: channels lie along what is a side for them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 5, 1), nn.Linear(5, 4)
        self.tokens = nn.Sequential(nn.Conv1d(16, 10, 1), nn.GELU(), nn.Conv1d(10, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.last((x + self.tokens(x)).sum(1))


@case(lambda: torch.randn(2, 6, dtype=torch.float64), 16 + 12)
class ComplexNumbers(nn.Module):
    """Real and imaginary parts made by layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.real, self.imag, self.last = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(12, 4)
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(16, 12)) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        made: Any = torch.complex(self.real(x), self.imag(x)) @ torch.complex(*self.weights)
        turned = torch.polar(made.abs(), made.angle())
        return self.last(turned.real + turned.abs())


@case(lambda: {"x": torch.randn(2, 6, 4, dtype=torch.float64), "lengths": torch.tensor([6, 4])}, 8 + 10)
class PackedSequences(nn.Module):
    """Sequences of several lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.lstm, self.last = nn.Linear(4, 8), nn.LSTM(8, 10, batch_first=True), nn.Linear(10, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.stem(x).relu(), lengths, batch_first=True)
        out, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.last(out)


@case(picture(), 6 + 6)
class Codebook(nn.Module):
    """A vector-quantised encoder: distances to a codebook, whose entries are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.codes, self.decode = nn.Conv2d(3, 6, 1), nn.Parameter(torch.randn(9, 6)), conv(6, 6)
        self.last = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encode(x).permute(0, 2, 3, 1)
        near = torch.cdist(z.flatten(0, 2), self.codes)
        chosen = self.codes[near.argmin(1)].view(z.shape)
        return self.last(self.decode((z + (chosen - z).detach()).permute(0, 3, 1, 2))), near.min(1).values


@case(picture(), 6 + 5 + 7)
class LooksElsewhere(nn.Module):
    """A spatial transformer, and boxes cut out of its picture."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.where, self.mid, self.last = conv(3, 6), nn.Linear(5, 6), conv(6, 7), nn.Linear(7 * 4, 3)
        self.small = conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        turn = self.where(self.small(x).mean((2, 3))).view(-1, 2, 3)
        x = self.mid(F.grid_sample(x, F.affine_grid(turn, [len(x), 1, 8, 8], align_corners=False), align_corners=False))
        boxes = torch.tensor([[0, 0, 0, 5, 5], [1, 1, 1, 6, 7]], dtype=x.dtype)
        return self.last(torchvision.ops.roi_align(x, boxes, 2).flatten(1))


class Splines(nn.Module):
    """A layer of Kolmogorov-Arnold networks, which keeps its width for a view."""

    grid: Tensor

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.base, self.curves = nn.Parameter(torch.randn(outs, ins)), nn.Parameter(torch.randn(outs, ins, 4))
        self.register_buffer("grid", torch.linspace(-1, 1, 4)[None], persistent=False)
        self.outs = outs

    def forward(self, x: Tensor) -> Tensor:
        bumps = torch.exp(-4 * (x.unsqueeze(-1) - self.grid) ** 2)
        return F.linear(F.silu(x), self.base) + F.linear(bumps.flatten(1), self.curves.view(self.outs, -1))


@case(lambda: torch.randn(2, 6, dtype=torch.float64), 8 + 8)
def square_splines() -> nn.Module:
    """As wide before as behind: one old width becomes two new ones, and the view takes only one of them."""
    return nn.Sequential(Splines(6, 8), Splines(8, 8), Splines(8, 3))


@case(tokens(), 16 + 6)
class SeveralHeads(nn.Module):
    """Attention that keeps the width of a head, which no tensor has, and of all heads together."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.last, self.n_heads, self.key_value_dim = nn.Embedding(11, 16), Last(16), 4, 6
        self.inner_dim = self.n_heads * self.key_value_dim
        self.q, self.k, self.v = (nn.Linear(16, self.inner_dim) for _ in range(3))
        self.out = nn.Linear(self.inner_dim, 16)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        q, k, v = (
            layer(x).view(len(x), -1, self.n_heads, self.key_value_dim).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = (q @ k.transpose(2, 3)).softmax(-1) @ v
        return self.last(x + self.out(mixed.transpose(1, 2).contiguous().view(len(x), -1, self.inner_dim)))


@case(picture(), 8)
class LooksAtNeighbours(nn.Module):
    """Efficient channel attention: a convolution along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 8), Head(8)
        self.gate = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.gate(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return self.head(x * y.transpose(1, 2).unsqueeze(-1))
