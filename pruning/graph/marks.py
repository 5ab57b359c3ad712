"""What only the user knows: modules that must stay, channels that belong together."""

from __future__ import annotations

from torch import nn


def keep(module: nn.Module) -> nn.Module:
    """Marks a module so that its parameters stay: every graph built from now on protects them, no ranking masks them.

    Returns the module. Of weights, the fractions that are asked for and reached leave marked layers out.
    """
    module._pruning_keep = True  # type: ignore[assignment]
    return module


def kept_parameters(model: nn.Module) -> set[int]:
    """Returns the ids of all parameters inside of modules marked by `keep`."""
    found: set[int] = set()
    for module in model.modules():
        if getattr(module, "_pruning_keep", False):
            found |= {id(parameter) for parameter in module.parameters()}
    return found


def tie(one: nn.Module, other: nn.Module) -> None:
    """Marks two modules so that every graph built from now on couples their output channels index by index."""
    vars(one)["_pruning_ties"] = [*getattr(one, "_pruning_ties", ()), other]
