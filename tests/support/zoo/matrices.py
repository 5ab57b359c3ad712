"""Small networks whose matrices are no weights of Linear or Conv, each with what it multiplies by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / 2)


class Conv1D(nn.Module):
    """A linear layer with its weight as (inputs, outputs), as in transformers."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight, self.bias = parameter(nx, nf), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return out.view(*x.shape[:-1], self.nf)


class Speech(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True, proj_size=3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 5)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


class Attention(nn.Module):
    """Self-attention, then attention of a learned query to keys of another width."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(4, 2, batch_first=True)
        self.other = nn.MultiheadAttention(6, 2, kdim=4, vdim=4, batch_first=True)
        self.query = parameter(1, 2, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.own(x, x, x)[0]
        query = self.query.expand(len(x), -1, -1)
        return self.head(self.other(query, x, x)[0].mean(1))


class Loops(nn.Module):
    """Experts in one tensor, one product each, as (expert, outputs, inputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = parameter(3, 7, 4), parameter(3, 4, 7)
        self.router, self.head = parameter(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(0, 1)
        shares = F.linear(x, self.router).softmax(-1)
        out = torch.zeros_like(x)
        for expert in range(3):
            hidden = F.linear(x, self.up[expert]).relu()
            out = out + shares[:, expert, None] * F.linear(hidden, self.down[expert])
        return self.head(out)


class Gathered(nn.Module):
    """Experts picked for each sample, as (expert, inputs, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.experts, self.head = parameter(3, 4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(1)
        chosen = torch.arange(len(x), device=x.device) % 3
        return self.head(torch.bmm(x[:, None], self.experts[chosen])[:, 0])


class Einsums(nn.Module):
    """(heads, inputs, width) and (heads, width, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.inwards, self.outwards = parameter(2, 4, 3), parameter(2, 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        heads = torch.einsum("btd,hdk->bthk", x, self.inwards).tanh()
        return torch.einsum("bthk,hko->bo", heads, self.outwards)


class Own(nn.Module):
    """Products of every spelling; a learned shift, a scale and a table of positions are no matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.column = parameter(4, 5), parameter(6, 5), parameter(6, 1)
        self.kernel = parameter(3, 6, 2)
        self.register_buffer("allowed", torch.tril(torch.ones(3, 3)))
        self.causal = parameter(3, 3)
        self.shift, self.scale = parameter(6, 5), parameter(1, 5)
        self.places = nn.Embedding(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.places(torch.arange(x.shape[1], device=x.device))
        x = x @ self.left * self.scale + self.shift
        x = torch.matmul(self.right, x.transpose(1, 2)).relu()
        gate = (self.column.t() @ x).sigmoid()
        x = F.conv1d(x * gate, self.kernel).mean(2)
        return F.linear(x, self.causal * self.allowed)


class Tied(nn.Module):
    """An embedding whose table is the last matrix as well, by a product of its own; positions are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.hidden = nn.Embedding(7, 4), nn.Embedding(6, 4), Conv1D(4, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places.weight[: tokens.shape[1]]
        return self.hidden(x).relu().mean(1) @ self.words.weight.t()


class Factors(nn.Module):
    """A matrix that is a product of two, and one that is a whole one and a correction."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = parameter(5, 2), parameter(2, 4)
        self.whole, self.out, self.back = parameter(3, 5), parameter(3, 2), parameter(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x.mean(1), self.up @ self.down).relu()
        return F.linear(x, self.whole + self.out @ self.back)


class Standardised(nn.Module):
    """Its matrix is made from a parameter in which a zero is none any more."""

    def __init__(self) -> None:
        super().__init__()
        self.raw, self.head = parameter(5, 4), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        centred = self.raw - self.raw.mean(1, keepdim=True)
        return self.head(F.linear(x.mean(1), centred / self.raw.std(1, keepdim=True)))


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pairs, self.head = nn.Bilinear(4, 4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pairs(x[:, 0], x[:, 1]))


class Modulated(nn.Module):
    """A kernel that is scaled by each sample, as in StyleGAN2."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.style = parameter(1, 3, 6, 2), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        batch = len(x)
        kernels = self.kernel * self.style(x.mean(1))[:, None, :, None]  # (samples, 3, 6, 2)
        grouped = F.conv1d(x.reshape(1, batch * 6, 4), kernels.reshape(batch * 3, 6, 2), groups=batch)
        return grouped.view(batch, 3, -1).mean(2)


class Mixture(nn.Module):
    """A recurrent layer, attention, a transposed linear layer, and two matrices of its own, one of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.own = nn.LSTM(4, 4, batch_first=True), parameter(4, 4)
        self.attention, self.wide = nn.MultiheadAttention(4, 2, batch_first=True), Conv1D(5, 4)
        self.experts = parameter(2, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.cells(x)[0] @ self.own
        x = self.wide(x + self.attention(x, x, x)[0]).relu().mean(1)
        return torch.bmm(x.expand(2, -1, -1), self.experts).sum(0)


def normed_recurrence() -> nn.Module:
    model = Speech()
    nn.utils.parametrizations.weight_norm(model.cells, "weight_hh_l0")
    return model


def sequence() -> Tensor:
    return torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(5))


def words() -> Tensor:
    return torch.tensor([[0, 3, 2, 6, 1, 1], [5, 4, 0, 1, 2, 3]])


@dataclass
class Case:
    """A network and what is true of it.

    Args:
        make: builds it.
        inputs: makes what it is called with.
        outputs: matrix -> dimensions of its outputs.
        left_out: parameter -> a word of the reason why it is not masked.
    """

    make: Callable[[], nn.Module]
    outputs: Mapping[str, tuple[int, ...]]
    left_out: Mapping[str, str]
    inputs: Callable[[], Any] = sequence


def _cells(*names: str) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys([f"cells.{name}" for name in names], (0,))


_SPEECH: list[str] = []
for _layer in ("l0", "l0_reverse", "l1", "l1_reverse"):
    _SPEECH += [f"weight_ih_{_layer}", f"weight_hh_{_layer}", f"weight_hr_{_layer}"]
_NORMED = [name.replace("weight_hh_l0", "parametrizations.weight_hh_l0.original1") for name in _SPEECH]
_NORMED[_NORMED.index("parametrizations.weight_hh_l0.original1_reverse")] = "weight_hh_l0_reverse"

MATRICES: dict[str, Case] = {
    "lstm": Case(Speech, _cells(*_SPEECH) | {"head.weight": (0,)}, {}),
    "weight-normed lstm": Case(normed_recurrence, _cells(*_NORMED) | {"head.weight": (0,)}, {}),
    "cell": Case(Cells, {"cell.weight_ih": (0,), "cell.weight_hh": (0,), "head.weight": (0,)}, {}),
    "attention": Case(
        Attention,
        {
            "own.in_proj_weight": (0,),
            "own.out_proj.weight": (0,),
            "other.q_proj_weight": (0,),
            "other.k_proj_weight": (0,),
            "other.v_proj_weight": (0,),
            "other.out_proj.weight": (0,),
            "head.weight": (0,),
        },
        {"query": "multiplies nothing"},
    ),
    "experts": Case(Loops, {"up": (0, 1), "down": (0, 1), "router": (0,), "head.weight": (0,)}, {}),
    "gathered experts": Case(Gathered, {"experts": (0, 2), "head.weight": (0,)}, {}),
    "einsum": Case(Einsums, {"inwards": (0, 2), "outwards": (2,)}, {}),
    "own": Case(
        Own,
        {"left": (1,), "right": (0,), "column": (1,), "kernel": (0,), "causal": (0,)},
        {"places.weight": "looked up", "shift": "multiplies nothing"},
    ),
    "tied": Case(Tied, {"hidden.weight": (1,), "words.weight": (0,)}, {"places.weight": "looked up"}, words),
    "factors": Case(Factors, dict.fromkeys(["up", "down", "out", "back"], (0,)) | {"whole": (0,)}, {}),
    "standardised": Case(Standardised, {"head.weight": (0,)}, {"raw": "multiplies nothing"}),
    "mixture": Case(
        Mixture,
        {
            "cells.weight_ih_l0": (0,),
            "cells.weight_hh_l0": (0,),
            "own": (1,),
            "attention.in_proj_weight": (0,),
            "attention.out_proj.weight": (0,),
            "wide.weight": (1,),
            "experts": (0, 2),
        },
        {},
    ),
    "bilinear": Case(Pairs, {"pairs.weight": (0,), "head.weight": (0,)}, {}),
    "modulated": Case(Modulated, {"style.weight": (0,), "kernel": (0,)}, {}),
}
