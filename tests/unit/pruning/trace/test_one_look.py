"""A second look, in training mode, and a trial removal are made where the code could do otherwise, and only there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pruning import DependencyGraph
from pruning.modules.modes import readers_of_mode


class Plain(nn.Module):
    """Layers alone: nothing in it asks for a mode of its own, or for a size."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.drop = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.out = nn.Linear(8, 4)

    def hidden(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.one(x)).relu())

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x).mean((2, 3)))


class LooksAtItsMode(Plain):
    """In training, two channels meet that do not in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(x)
        if self.training:
            x = x + x.flip(1)
        return self.out(x.mean((2, 3)))


class LooksAtASize(Plain):
    """Its code says a width in numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x).view(len(x), 8, -1).mean(2))


class FailsWithFewer(Plain):
    """Its code refuses other widths."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(x)
        if x.size(1) < 8:
            raise RuntimeError("eight channels were expected")
        return self.out(x.mean((2, 3)))


X = torch.randn(2, 3, 6, 6)


def test_layers_alone_are_looked_at_once() -> None:
    graph = DependencyGraph(Plain(), X)
    assert list(graph.traced.runs) == [False] and not graph.traced.handles_sizes
    assert len(graph.nodes) == 8


def test_what_happens_in_training_alone_couples() -> None:
    graph = DependencyGraph(LooksAtItsMode(), X)
    assert len(graph.nodes) == 4  # a channel and the one that it meets turned round


@pytest.mark.parametrize("kind", [LooksAtASize, FailsWithFewer])
def test_code_that_handles_sizes_is_tried_out(kind: type[nn.Module]) -> None:
    graph = DependencyGraph(kind(), X)
    assert graph.traced.handles_sizes and not len(graph.nodes)
    assert any("eight channels" in str(pin) or "view to [2, 8" in str(pin) for pin in graph.pinned)


def test_who_asks_for_its_mode_is_known_and_nothing_stays_behind() -> None:
    model = LooksAtItsMode().eval()
    with readers_of_mode() as readers:
        model(X)
    assert readers == {model, model.norm, model.drop}
    assert "training" not in vars(nn.Module) and model.training is False
