"""Small networks of every kind of coupling, with their nodes written down by a person."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning import PrunableNetwork
from tests.support.slow_reference_nodes import Group, Rows, across, each, spread
from tests.support.zoo.registry import NETWORKS, Case
from tests.support.zoo.small import build, data, mlp


@dataclass
class ByHand:
    """A network, the shape of its inputs, and which channels go together."""

    maker: Callable[[], nn.Module]
    shape: tuple[int, ...]
    groups: list[Group]

    def network(self, dtype: torch.dtype = torch.float32, **options) -> PrunableNetwork:
        return PrunableNetwork(build(self.maker, dtype=dtype), torch.zeros(2, *self.shape, dtype=dtype), **options)

    def inputs(self) -> Tensor:
        return torch.randn(2, *self.shape, dtype=torch.float64)

    def batches(self, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
        return data(self.shape, dtype=dtype)


def plain() -> nn.Module:
    first = [nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*first, nn.Linear(20, 6), nn.LeakyReLU(0.1), nn.Linear(6, 4))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 5, 1, bias=False)
        self.norm, self.last, self.head = nn.BatchNorm2d(6), nn.BatchNorm2d(5), nn.Linear(5, 4)

    def forward(self, x):
        stem = F.relu(self.stem(x))
        return self.head(F.relu(stem + self.last(self.second(F.relu(self.norm(self.first(stem)))))).mean((2, 3)))


class Concatenated(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 4, 3)
        self.norm, self.third, self.head = nn.BatchNorm2d(7), nn.Conv2d(7, 5, 1), nn.Linear(5, 4)

    def forward(self, x):
        both = F.relu(self.norm(torch.cat([self.one(x), self.two(x)], 1)))
        return self.head(F.silu(self.third(both)).mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.groups = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, groups=2)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(F.relu(self.groups(F.relu(self.norm(self.stem(x))))).mean((2, 3)))


class Depthwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.widen, self.depth, self.norm = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6)
        self.narrow, self.head = nn.Conv2d(6, 3, 1), nn.Linear(3, 4)

    def forward(self, x):
        x = F.hardtanh(self.norm(self.depth(F.relu(self.widen(x)))))
        return self.head(F.relu(self.narrow(x)).mean((2, 3)))


class Attention(nn.Module):
    """Two heads of width 4, by hand; tokens are the columns of the input."""

    def __init__(self):
        super().__init__()
        self.embed, self.query, self.key = nn.Linear(3, 6), nn.Linear(6, 8), nn.Linear(6, 8)
        self.value, self.out, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x):  # (B, T, 3) -> (B, 4)
        x = self.embed(x)
        q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = (q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v  # (B, heads, T, width)
        return self.head((x + self.out(mixed.transpose(1, 2).flatten(2))).mean(1))


def shifted(rows: Rows, start: int) -> Rows:
    return [[start + index for index in indices] for indices in rows]


BY_HAND = {
    "plain": ByHand(plain, (2, 6, 6), [
        Group({"0": each(5)}, {"1": each(5)}, {"5": spread(5, 4)}),
        Group({"5": each(6)}, {}, {"7": each(6)}),
    ]),
    "dense": ByHand(mlp, (6,), [
        Group({"0": each(7)}, {"1": each(7)}, {"4": each(7)}),
        Group({"4": each(5)}, {}, {"6": each(5)}),
    ]),
    "residual": ByHand(Residual, (2, 5, 5), [
        Group({"stem": each(5), "second": each(5)}, {"last": each(5)}, {"first": each(5), "head": each(5)}),
        Group({"first": each(6)}, {"norm": each(6)}, {"second": each(6)}),
    ]),
    "concatenated": ByHand(Concatenated, (2, 5, 5), [
        Group({"one": each(3)}, {"norm": each(3)}, {"third": each(3)}),
        Group({"two": each(4)}, {"norm": shifted(each(4), 3)}, {"third": shifted(each(4), 3)}),
        Group({"third": each(5)}, {}, {"head": each(5)}),
    ]),
    "grouped": ByHand(Grouped, (2, 6, 6), [
        Group({"stem": across(4, 2)}, {"norm": across(4, 2)}, {"groups": each(4)}),
        Group({"groups": across(3, 2)}, {}, {"head": across(3, 2)}),
    ]),
    "depthwise": ByHand(Depthwise, (2, 5, 5), [
        Group({"widen": each(6), "depth": each(6)}, {"norm": each(6)}, {"narrow": each(6)}),
        Group({"narrow": each(3)}, {}, {"head": each(3)}),
    ]),
    "attention": ByHand(Attention, (5, 3), [
        Group({"embed": each(6), "out": each(6)}, {},
              {"query": each(6), "key": each(6), "value": each(6), "head": each(6)}),
        Group({"query": across(4, 2), "key": across(4, 2)}),
        Group({"value": across(4, 2)}, {}, {"out": across(4, 2)}),
    ]),
}  # fmt: skip

for kind, by_hand in BY_HAND.items():
    if by_hand.maker is not mlp:  # that one stands in the table already
        NETWORKS[f"{kind}_by_hand"] = Case(by_hand.maker, by_hand.inputs, sum(map(len, by_hand.groups)))


def node_numbers(network: PrunableNetwork, groups: list[Group]) -> list[list[int]]:
    """The graph's number of each node written down by hand; fails unless both know the same nodes and slices."""
    numbers = []
    for group in groups:
        path, rows = next(iter(group.producers.items()))
        numbers.append([network.graph.node_of(f"{path}.weight", 0, indices[0]) for indices in rows])
    flat = [number for row in numbers for number in row]
    assert sorted(flat) == list(range(len(network.graph.nodes)))
    for group, row in zip(groups, numbers, strict=True):
        for node, number in enumerate(row):
            assert set(network.graph.nodes[number].slices) >= _weights(group)
            assert {k: v for k, v in network.graph.nodes[number].slices.items() if k in _weights(group)} == {
                key: sorted(indices) for key, indices in _slices(group, node).items()
            }
    return numbers


def _weights(group: Group) -> set[tuple[str, int]]:
    return {(f"{path}.weight", 0) for path in [*group.producers, *group.norms]} | {
        (f"{path}.weight", 1) for path in group.consumers
    }


def _slices(group: Group, node: int) -> dict[tuple[str, int], list[int]]:
    first = {(f"{path}.weight", 0): rows[node] for path, rows in [*group.producers.items(), *group.norms.items()]}
    return first | {(f"{path}.weight", 1): columns[node] for path, columns in group.consumers.items()}


def in_groups(values: Tensor, numbers: list[list[int]]) -> list[Tensor]:
    """Scores in the graph's order, brought into the order of the groups."""
    return [values[torch.tensor(row)].double() for row in numbers]
