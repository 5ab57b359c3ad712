"""What only the user knows: modules that must stay, channels that belong together."""

from __future__ import annotations

from torch import nn


def keep(module: nn.Module) -> nn.Module:
    """Marks a module so that every graph built from now on protects its parameters; returns it."""
    module._pruning_keep = True  # type: ignore[assignment]
    return module


def tie(one: nn.Module, other: nn.Module) -> None:
    """Marks two modules so that every graph built from now on couples their output channels index by index."""
    vars(one)["_pruning_ties"] = [*getattr(one, "_pruning_ties", ()), other]
