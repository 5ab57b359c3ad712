"""Integers that a user's modules keep: as attributes of objects and classes, in containers, and in configurations."""

from __future__ import annotations

import argparse
import copy
import functools
import sys
import types
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import nn

from pruning.modules.attributes import BY_TYPE

# nn.Module's own registries never hold a user's integers.
REGISTRIES = frozenset((*vars(nn.Module()), "_is_full_backward_hook", "_version"))

_DEEPEST = 3  # nested containers, or objects in objects

_LONGEST = 1000  # items of a container that is looked into

Made = Callable[[str, tuple[Any, ...], int], int]


# -- who keeps integers ------------------------------------------------------------------------------------------------

_ATOMS = (int, float, complex, str, bytes, bool, type(None), torch.Tensor, nn.Parameter)

_LIBRARIES = frozenset((*sys.stdlib_module_names, "torch", "numpy"))

_SETTINGS = (types.SimpleNamespace, argparse.Namespace)  # what small programs keep their settings in


def holders(model: nn.Module) -> dict[str, Any]:
    """Returns path -> whatever keeps integers for its code: all modules, and plain objects that modules hold.

    Plain objects (configurations) are named after the first module that holds them, "path:name", and those in
    containers or in other plain objects after the way to them, "path:name[0].name".
    """
    found: dict[str, Any] = dict(model.named_modules())
    known = {id(holder) for holder in found.values()}
    for path, module in list(found.items()):
        for name, value in vars(module).items():
            if name not in REGISTRIES and type(value) not in _ATOMS:
                _collect(f"{path}:{name}", value, found, known, _DEEPEST)
    return found


def _collect(path: str, value: Any, found: dict[str, Any], known: set[int], depth: int) -> None:
    """Adds the plain objects in a value."""
    if not depth or id(value) in known:
        return
    if _is_plain_object(value):
        known.add(id(value))
        found[path] = value
        for name, inner in vars(value).items():
            if type(inner) not in _ATOMS:
                _collect(f"{path}.{name}", inner, found, known, depth - 1)
        return
    for place, item in parts_of(value):
        if type(item) not in _ATOMS:
            _collect(f"{path}[{place!r}]", item, found, known, depth - 1)


def _is_plain_object(value: Any) -> bool:
    kind = type(value)
    if kind in _SETTINGS:
        return True
    if isinstance(value, (nn.Module, torch.Tensor, type, Enum, dict, list, tuple)):
        return False
    is_of_library = kind.__module__.split(".")[0] in _LIBRARIES
    return not is_of_library and hasattr(value, "__dict__")


# -- what is in containers ---------------------------------------------------------------------------------------------


def parts_of(value: Any) -> list[tuple[Any, Any]]:
    """Returns (place, item) of what a container holds; nothing for anything else, and for what is too long."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        found = list(value.items())
    elif isinstance(value, (list, tuple)) and not hasattr(type(value), "n_sequence_fields"):  # the system's own tuples
        found = list(enumerate(value))
    elif type(value) is functools.partial:
        found = [*enumerate(value.args), *value.keywords.items()]
    return found if len(found) <= _LONGEST else []


def part(value: Any, place: Any) -> Any:
    """Returns what a container holds at a place."""
    if type(value) is functools.partial:
        return value.args[place] if isinstance(place, int) else value.keywords[place]
    return value[place]


def with_parts(value: Any, parts: dict[Any, Any]) -> Any:
    """Returns a container of the same kind with other items at the same places."""
    if type(value) is functools.partial:
        args = [parts[place] for place in range(len(value.args))]
        keywords = {name: parts[name] for name in value.keywords}
        return functools.partial(value.func, *args, **keywords)
    if isinstance(value, dict):
        made = copy.copy(value)
        for key, item in parts.items():
            dict.__setitem__(made, key, item)  # past what a class of the user's own does with new items
        return made
    items = list(parts.values())
    if isinstance(value, list):
        row: list[Any] = copy.copy(value)
        list.__setitem__(row, slice(None), items)
        return row
    if type(value) is torch.Size:
        return torch.Size(items)
    return tuple.__new__(type(value), items)  # named tuples take their items one by one, others all at once


# -- the integers ------------------------------------------------------------------------------------------------------


def value_of(holder: Any, name: str) -> Any:
    """Returns what an object keeps under a name, or the integer that its class does; None where it keeps nothing."""
    own = getattr(holder, "__dict__", {})
    if name in own:
        return own[name]
    of_class = getattr(type(holder), name, None)
    return of_class if type(of_class) is int else None


def replaced_integers(holder: Any, change: Made) -> Iterator[tuple[str, Any]]:
    """Yields (attribute, new value) for all attributes of integers, those of a module's class included.

    Args:
        holder: a module or a plain object. What torch's own modules say about their weights follows from shapes
            (`module_integers`) and is left out; without weights, as in a norm that only normalises, nothing says it.
        change: called with attribute, path within its containers and integer; returns the integer to put there.
    """
    kind: Any = type(holder)
    skipped = _names_of_torch(kind)
    if skipped != frozenset() and not any(weight is not None for weight in holder._parameters.values()):
        skipped = frozenset()
    if skipped is None:
        return
    for name, value in (*vars(holder).items(), *_of_class(holder)):
        if name not in REGISTRIES and name not in skipped and _holds_integers(value, _DEEPEST):
            yield name, _replaced(value, name, (), change)


def _of_class(holder: Any) -> list[tuple[str, int]]:
    """Returns (name, integer) of a module's classes; a new value becomes an attribute of the module itself."""
    found: list[tuple[str, int]] = []
    if not isinstance(holder, nn.Module):
        return found
    own = vars(holder)
    for kind in type(holder).__mro__:
        if kind.__module__.split(".")[0] in _LIBRARIES:
            continue
        for name, value in vars(kind).items():
            if type(value) is int and name not in own and not name.startswith("__"):
                found.append((name, value))
    return found


# What torch's layers keep beside what they call their constants.
_UNNAMED = ("embed_dim", "head_dim", "kdim", "vdim", "num_heads", "_reversed_padding_repeated_twice")


@functools.cache
def _names_of_torch(kind: type) -> frozenset[str] | None:
    """Returns names of attributes that torch's layers say about their weights, for a class of modules.

    None stands for all names: the class is torch's own. A user's subclass may keep integers of its own beside them.
    """
    layers = [base for kinds, _ in BY_TYPE for base in (kinds if isinstance(kinds, tuple) else (kinds,))]
    own = [base for base in layers if issubclass(kind, base)]
    if not own:
        return frozenset()
    if kind.__module__.split(".")[0] == "torch":
        return None
    constants = [name for base in own for name in getattr(base, "__constants__", ())]
    return frozenset((*constants, *_UNNAMED))


def _is_integer(value: Any) -> bool:
    return type(value) is int or isinstance(value, np.integer)


def _holds_integers(value: Any, depth: int) -> bool:
    if _is_integer(value):
        return True
    if not depth:
        return False
    return any(_holds_integers(item, depth - 1) for _, item in parts_of(value))


def _replaced(value: Any, name: str, path: tuple[Any, ...], change: Made) -> Any:
    if _is_integer(value):
        made = change(name, path, int(value))
        return type(value)(made) if type(made) is int else made
    parts = parts_of(value)
    if not parts:
        return value
    return with_parts(value, {place: _replaced(item, name, (*path, place), change) for place, item in parts})
