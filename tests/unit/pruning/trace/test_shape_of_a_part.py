"""A position or a part that the code asks for its shape alone pins nothing; once its values are used, it does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pruning import DependencyGraph

WIDTH = 8


class AddsPositions(nn.Module):
    """Learned positions for as many tokens as some part of the activations has."""

    def __init__(self, count: Callable[[Tensor], int]) -> None:
        super().__init__()
        self.count = count
        self.enter, self.leave = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 4)
        self.positions = nn.Parameter(torch.randn(20, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(torch.relu(x + self.positions[: self.count(x)]))


SHAPES_ALONE: dict[str, Callable[[Tensor], int]] = {
    "last channel": lambda x: x[:, :, -1].shape[1],
    "one channel, kept as a dimension": lambda x: x[..., :1].shape[1],
    "select": lambda x: x.select(2, 0).size(1),
    "nothing": lambda x: x[..., 0:0].shape[1],
    "moved on": lambda x: x[:, :, -1].unsqueeze(1).transpose(1, 2).shape[1],
}


@pytest.mark.parametrize("count", SHAPES_ALONE.values(), ids=list(SHAPES_ALONE))
def test_a_shape_pins_nothing(count: Callable[[Tensor], int]) -> None:
    torch.manual_seed(0)
    model, x = AddsPositions(count).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    graph = DependencyGraph(model, x)
    assert len(graph.nodes) == WIDTH
    with torch.no_grad():
        model.leave.weight[:, [1, 4]] = 0
        expected = model(x)
        graph.get_pruning_plan(model.enter, idxs=[1, 4]).exec()
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("use", [lambda x: int(x[:, :, -1].abs().sum() * 0), lambda x: int((x[..., :1] * 0).sum())])
def test_values_pin(use: Callable[[Tensor], int]) -> None:
    graph = DependencyGraph(AddsPositions(lambda x: x.shape[1] + use(x)), torch.randn(2, 5, 6))
    assert not len(graph.nodes)
    assert any("a single position of it is picked" in pin.reason for pin in graph.pinned)
