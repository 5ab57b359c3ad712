"""The table of the zoo: every network with what it is called with; a network enters itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruning.modules.calls import tensors_in


@dataclass(frozen=True)
class Case:
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


def case(
    inputs: Callable[[], Any], least: int = 1, name: str = ""
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Enters a builder or a module class into `NETWORKS`, under its own name unless another is given."""

    def enter(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        key = name or build.__name__
        assert key not in NETWORKS, f"the zoo has a {key} already"
        NETWORKS[key] = Case(build, inputs, least)
        return build

    return enter


def randomise(model: nn.Module) -> nn.Module:
    """Gives norms and biases values that a mistake would show in."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and tensor.dim() == 1 and not name.endswith(("_u", "_v")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5)
    return model


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns inputs as a call takes them: a tuple is several, a dictionary is by keyword."""
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def call(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Returns every tensor that a network computes, without gradients."""
    positional, named = arguments(inputs)
    with torch.no_grad():
        return tensors_in(model(*positional, **named))
