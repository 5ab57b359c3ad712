"""Attention as people write it, in small: each class below another way of making heads and of joining them again.

All take tokens (batch, tokens, DIM) and return as many. `Layers` makes a network of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.graph.graph import DependencyGraph

DIM, HEADS, WIDTH, TOKENS = 16, 4, 4, 5  # of the stream, of a layer, of one head, of the example


class Layers(nn.Module):
    """Residual blocks of attention and an MLP, and a classifier over the mean token."""

    def __init__(self, make: Callable[[], nn.Module], layers: int = 2, units: int = 6) -> None:
        super().__init__()
        self.stem = nn.Linear(3, DIM)
        self.attentions = nn.ModuleList([make() for _ in range(layers)])
        self.before = nn.ModuleList([nn.LayerNorm(DIM) for _ in range(layers)])
        self.mlps = nn.ModuleList(
            [nn.Sequential(nn.Linear(DIM, units), nn.GELU(), nn.Linear(units, DIM)) for _ in range(layers)]
        )
        self.classifier = nn.Linear(DIM, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.stem(tokens)
        for attention, norm, mlp in zip(self.attentions, self.before, self.mlps, strict=True):
            tokens = tokens + attention(norm(tokens))
            tokens = tokens + mlp(tokens)
        return self.classifier(tokens.mean(1))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention by hand; (batch, heads, tokens, width) each."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return scores.softmax(-1) @ value


class Fused(nn.Module):
    """Queries, keys and values in one projection, as in timm's ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, WIDTH
        self.qkv = nn.Linear(DIM, 3 * HEADS * WIDTH)
        self.proj = nn.Linear(HEADS * WIDTH, DIM)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        parts = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attend(query, key, value).transpose(1, 2).reshape(batch, tokens, -1))


class FusedOfStream(Fused):
    """Takes the width of a head, and of all of them, from the stream, as torchvision's Swin and nanoGPT do."""

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        parts = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attend(query, key, value).transpose(1, 2).reshape(batch, tokens, dim))


class Biased(Fused):
    """A table of position biases has a dimension of heads, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2 * TOKENS - 1, HEADS))
        places = torch.arange(TOKENS)
        self.register_buffer("places", (places[:, None] - places + TOKENS - 1).flatten())

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        parts = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.places].view(tokens, tokens, -1).permute(2, 0, 1)
        scores = query * self.head_dim**-0.5 @ key.transpose(-1, -2) + bias
        return self.proj((scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, tokens, -1))


class Separate(nn.Module):
    """A projection each; with fewer key-value heads, several query heads share one."""

    def __init__(self, key_heads: int = HEADS) -> None:
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.head_dim = HEADS, key_heads, WIDTH
        self.all_head_size = HEADS * WIDTH
        self.query = nn.Linear(DIM, HEADS * WIDTH)
        self.key = nn.Linear(DIM, key_heads * WIDTH)
        self.value = nn.Linear(DIM, key_heads * WIDTH)
        self.output = nn.Linear(HEADS * WIDTH, DIM)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (batch, heads, tokens, width) each."""
        batch, tokens, _ = x.shape
        query = self.query(x).view(batch, tokens, self.num_heads, self.head_dim)
        key = self.key(x).view(batch, tokens, self.num_key_value_heads, self.head_dim)
        value = self.value(x).view(batch, tokens, self.num_key_value_heads, self.head_dim)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def join(self, heads: Tensor) -> Tensor:
        batch, _, tokens, _ = heads.shape
        return self.output(heads.transpose(1, 2).reshape(batch, tokens, self.all_head_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.join(F.scaled_dot_product_attention(*self.split(x)))


class Repeated(Separate):
    """Keys and values are repeated for their queries, as in transformers' Llama."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.split(x)
        return self.join(attend(query, self.repeat(key), self.repeat(value)))

    def repeat(self, x: Tensor) -> Tensor:
        batch, heads, tokens, width = x.shape
        times = HEADS // 2
        return x[:, :, None].expand(batch, heads, times, tokens, width).reshape(batch, heads * times, tokens, width)


class Interleaved(Repeated):
    """The same by `repeat_interleave`."""

    def repeat(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(HEADS // 2, dim=1)


class GroupedInOne(Separate):
    """torch's own grouped queries."""

    def forward(self, x: Tensor) -> Tensor:
        return self.join(F.scaled_dot_product_attention(*self.split(x), enable_gqa=True))


class GroupedByEinsum(Separate):
    """Queries have a dimension for their key-value head and one for their place in its group."""

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        _, key, value = self.split(x)
        query = self.query(x).view(batch, tokens, self.num_key_value_heads, -1, self.head_dim)
        scores = torch.einsum("bqhgd,bhkd->bhgqk", query, key) / math.sqrt(self.head_dim)
        heads = torch.einsum("bhgqk,bhkd->bqhgd", scores.softmax(-1), value)
        return self.output(heads.reshape(batch, tokens, -1))


class ByEinsum(Separate):
    """Attention by einsum; the width of a head is what is left."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (part(x).unflatten(-1, (self.num_heads, -1)) for part in (self.query, self.key, self.value))
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(self.head_dim)
        return self.output(torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).flatten(2))


class OfParameters(nn.Module):
    """Projections are parameters with a dimension of heads, as in code that came from JAX."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Parameter(torch.randn(HEADS, DIM, WIDTH) * 0.3) for _ in range(3))
        self.output = nn.Parameter(torch.randn(HEADS, WIDTH, DIM) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (torch.einsum("btc,hcd->bhtd", x, part) for part in (self.query, self.key, self.value))
        return torch.einsum("bhtd,hdc->btc", attend(query, key, value), self.output)


class Normed(Separate):
    """Queries are normalised by head and outputs gated by head, so dimensions are split again where no attention is."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.gate = nn.Linear(DIM, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        query, key, value = self.split(x)
        flat = self.norm(query.transpose(1, 2)).reshape(batch, tokens, -1)
        query = flat.view(batch, tokens, self.num_heads, self.head_dim).transpose(1, 2)
        flat = attend(query, key, value).transpose(1, 2).reshape(batch, tokens, -1)
        heads = flat.view(batch, tokens, self.num_heads, self.head_dim) * self.gate(x).sigmoid()[..., None]
        return self.output(heads.flatten(2))


class Rotary(Separate):
    """Halves of a head are turned by positions."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.split(x)
        angles = torch.arange(x.shape[1])[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1])
        cos, sin = angles.cos().to(x), angles.sin().to(x)

        def turned(heads: Tensor) -> Tensor:
            first, second = heads.chunk(2, dim=-1)
            return heads * cos + torch.cat([-second, first], dim=-1) * sin

        return self.join(attend(turned(query), turned(key), value))


class WithoutSoftmax(Separate):
    """Linear attention: keys meet values first."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.split(x)
        return self.join(query.relu() @ (key.relu().transpose(-1, -2) @ value))


class BatchOfHeads(Separate):
    """Heads are part of the batch, as in fairseq: (batch * heads, tokens, width)."""

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        query, key, value = (
            part(x).transpose(0, 1).contiguous().view(tokens, batch * self.num_heads, self.head_dim).transpose(0, 1)
            for part in (self.query, self.key, self.value)
        )
        heads = torch.bmm(torch.bmm(query * self.head_dim**-0.5, key.transpose(1, 2)).softmax(-1), value)
        return self.output(heads.transpose(0, 1).reshape(tokens, batch, -1)).transpose(0, 1)


class OneKey(Separate):
    """All queries share one key and one value."""

    def __init__(self) -> None:
        super().__init__(key_heads=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(attend(*self.split(x)))


class TalkingHeads(Separate):
    """Scores of all heads are mixed by a layer whose inputs and outputs are heads (Shazeer et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(HEADS, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.split(x)
        scores = query @ key.transpose(-1, -2) * self.head_dim**-0.5
        scores = self.mix(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.join(scores.softmax(-1) @ value)


class ElementByElement(Separate):
    """Products are written without a product of matrices."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.split(x)
        scores = (query[:, :, :, None] * key[:, :, None]).sum(-1) * self.head_dim**-0.5
        return self.join((scores.softmax(-1)[..., None] * value[:, :, None]).sum(3))


# name -> how a layer is made
ATTENTIONS: dict[str, Callable[[], nn.Module]] = {
    "fused": Fused,
    "fused_of_stream": FusedOfStream,
    "biased": Biased,
    "separate": Separate,
    "repeated": lambda: Repeated(key_heads=2),
    "interleaved": lambda: Interleaved(key_heads=2),
    "grouped_in_one": lambda: GroupedInOne(key_heads=2),
    "grouped_by_einsum": lambda: GroupedByEinsum(key_heads=2),
    "by_einsum": ByEinsum,
    "of_parameters": OfParameters,
    "normed": Normed,
    "rotary": Rotary,
    "without_softmax": WithoutSoftmax,
    "batch_of_heads": BatchOfHeads,
    "one_key": OneKey,
    "talking_heads": TalkingHeads,
    "element_by_element": ElementByElement,
}


# -- what tests of heads share -----------------------------------------------------------------------------------------


def zeroed(model: nn.Module, graph: DependencyGraph, nodes: list[int]) -> nn.Module:
    """Returns a copy in which all slices of some nodes are zero."""
    other = copy.deepcopy(model)
    parameters = dict(other.named_parameters())
    with torch.no_grad():
        for node in nodes:
            for (name, dim), indices in graph.nodes[node].slices.items():
                if name in parameters:
                    parameters[name].index_fill_(dim, torch.tensor(indices), 0)
    return other


def head_groups(graph: DependencyGraph) -> list[np.ndarray]:
    """Returns the heads of each layer."""
    return [group.nodes for group in graph.groups if np.isin(group.nodes, graph.heads).any()]
