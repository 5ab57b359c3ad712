"""Integers that a user's modules keep: as attributes, in lists, tuples and dicts, and in configurations."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from pruning.modules.attributes import BY_TYPE

# nn.Module's own registries never hold a user's integers.
REGISTRIES = frozenset((*vars(nn.Module()), "_is_full_backward_hook", "_version"))

_DEEPEST = 3  # nested containers

Made = Callable[[str, tuple[Any, ...], int], int]


def holders(model: nn.Module) -> dict[str, Any]:
    """Returns path -> whatever keeps integers for its code: all modules, and plain objects that modules hold.

    Plain objects (configurations) are named after the first module that holds them.
    """
    modules = dict(model.named_modules())
    found: dict[str, Any] = dict(modules)
    known = {id(holder) for holder in found.values()}
    for path, module in modules.items():
        for name, value in vars(module).items():
            if name not in REGISTRIES and id(value) not in known and _is_plain_object(value):
                known.add(id(value))
                found[f"{path}:{name}"] = value
    return found


def _is_plain_object(value: Any) -> bool:
    kind = type(value)
    if kind is types.SimpleNamespace:  # small programs keep their settings in one
        return True
    strange = isinstance(value, (nn.Module, torch.Tensor, type, torch.Size)) or callable(value)
    library = kind.__module__.split(".")[0] in ("builtins", "torch", "numpy", "collections", "functools", "types")
    return not strange and not library and hasattr(value, "__dict__")


def replaced_integers(holder: Any, change: Made) -> Iterator[tuple[str, Any]]:
    """Yields (attribute, new value) for all attributes of integers.

    Args:
        holder: a module or a plain object. What torch's own modules say about their weights follows from shapes
            (`module_integers`) and is left out; without weights, as in a norm that only normalises, nothing says it.
        change: called with attribute, path within its containers and integer; returns the integer to put there.
    """
    if isinstance(holder, nn.Module) and any(isinstance(holder, kinds) for kinds, _ in BY_TYPE):
        has_weights = any(weight is not None for weight in holder._parameters.values())
        if has_weights:
            return
    for name, value in vars(holder).items():
        if name in REGISTRIES or not _holds_integers(value, _DEEPEST):
            continue
        yield name, _replaced(value, name, (), change)


def _holds_integers(value: Any, depth: int) -> bool:
    if type(value) is int:
        return True
    if type(value) is dict:
        value = list(value.values())
    if type(value) not in (list, tuple, torch.Size) or not depth or len(value) > 1000:
        return False
    return any(_holds_integers(item, depth - 1) for item in value)


def _replaced(value: Any, name: str, path: tuple[Any, ...], change: Made) -> Any:
    if type(value) is int:
        return change(name, path, value)
    if type(value) is dict:
        return {key: _replaced(item, name, (*path, key), change) for key, item in value.items()}
    if type(value) in (list, tuple, torch.Size):
        items = [_replaced(item, name, (*path, place), change) for place, item in enumerate(value)]
        return type(value)(items)
    return value
