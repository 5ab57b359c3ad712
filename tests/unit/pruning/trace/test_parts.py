"""Parts of which only the shape is used, parts of nothing, and channels that are shifted by a number of places."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruning import DependencyGraph

X = torch.randn(2, 6, dtype=torch.float64)


class Between(nn.Module):
    """Two layers of 6, 8 and 3 units, and code between them."""

    def __init__(self, between: Callable[[Between, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.places, self.between = 3, between

    def forward(self, x: Tensor) -> Any:
        return self.last(self.between(self, self.first(x).relu()))


def prunable(between: Callable[..., Tensor]) -> list[int]:
    """Returns which of the 8 units can go, after trying six choices of them against zeros in their place."""
    torch.manual_seed(0)
    dense = Between(between).double()
    units: list[int] = []
    for seed in range(6):
        small = copy.deepcopy(dense)
        graph = DependencyGraph(small, X)
        nodes = graph.nodes_along("first.weight", 0)
        units = np.flatnonzero(nodes >= 0).tolist()
        if len(graph.nodes) < 2:
            return units
        random = np.random.default_rng(seed)
        chosen = random.choice(len(graph.nodes), random.integers(1, len(graph.nodes)), replace=False)
        plan, masked = graph.plan(chosen), copy.deepcopy(dense)
        with torch.no_grad():
            for name, keep in plan.keeps.items():
                for dim, kept in keep.items():
                    parameter = masked.get_parameter(name)
                    gone = np.setdiff1d(np.arange(parameter.shape[dim]), kept.numpy())
                    parameter.index_fill_(dim, torch.from_numpy(gone), 0)
        plan.exec()
        torch.testing.assert_close(small(X), masked(X), rtol=0, atol=1e-12)
    return units


EVERY = list(range(8))


@pytest.mark.parametrize(
    "between",
    [
        lambda net, x: x * x[:, :3].shape[0],
        lambda net, x: x.view(x[:, 0].unsqueeze(1).shape[0], -1),
        lambda net, x: x * len(x[:, :4]),
        lambda net, x: x + torch.zeros_like(x[:, :1]),
        lambda net, x: x * x[:, 0].new_ones(2, 1),
        lambda net, x: torch.cat([x[:, :0], x, x[:, 8:]], 1),
        lambda net, x: x + x[:, 3:3].sum(1, keepdim=True),
        lambda net, x: torch.cat([x.narrow(1, 0, 0), x], 1),
    ],
)
def test_what_is_not_read_pins_nothing(between: Callable[..., Tensor]) -> None:
    assert prunable(between) == EVERY


@pytest.mark.parametrize(
    "between",
    [
        lambda net, x: x + x[:, :3].sum(1, keepdim=True),
        lambda net, x: x + x[:, :1],
        lambda net, x: x + x[:, 2:3].unsqueeze(1).squeeze(2),
    ],
)
def test_what_is_read_pins_as_ever(between: Callable[..., Tensor]) -> None:
    assert len(prunable(between)) < 8


def test_a_part_that_is_returned_is_read() -> None:
    class Returned(Between):
        def forward(self, x: Tensor) -> Any:
            hidden = self.first(x).relu()
            return self.last(hidden), hidden[:, :1]

    assert len(DependencyGraph(Returned(lambda net, x: x).double(), X).nodes) == 0
    graph = DependencyGraph(Returned(lambda net, x: x).double(), X, outputs=lambda out: out[0])
    assert len(graph.nodes) == 8


@pytest.mark.parametrize(
    ("between", "units"),
    [
        (lambda net, x: x.roll(1, 1), EVERY[:-1]),
        (lambda net, x: torch.roll(x, -2, dims=-1), EVERY[2:]),
        (lambda net, x: torch.roll(x, (1, 3), dims=(0, 1)), EVERY[:-3]),
        (lambda net, x: torch.roll(x, net.places, dims=1), EVERY),  # the number follows
        (lambda net, x: torch.roll(x, x.shape[1] // 2, dims=1), EVERY),  # in pairs
        (lambda net, x: torch.roll(x, 0, dims=1), EVERY),
        (lambda net, x: torch.roll(x, 8, dims=1), []),
        (lambda net, x: torch.roll(x, 1), []),
        (lambda net, x: x + x.roll(1, 1), []),
    ],
)
def test_rolled_channels(between: Callable[..., Tensor], units: list[int]) -> None:
    assert prunable(between) == units
