"""Recurrent layers, attention, experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.zoo.registry import case, rows, tokens


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
