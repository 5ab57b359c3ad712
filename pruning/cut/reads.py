"""Which attributes the code of a network may read in forward, found by names in its compiled code, without running it.

A name counts as read if any function mentions it that forward may reach: functions are followed by their names, through
every class that the network's modules and plain objects have, and through the globals of the code that names them. So
more may count as read than is, and less only where code makes names while it runs; then nothing is known.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

from pruning.modules.kept import holders

# Code that asks for attributes by names of its own making.
_DYNAMIC = frozenset(("__dict__", "vars", "eval", "exec", "globals", "locals", "attrgetter", "__getattribute__"))

# Syntax calls these without a name.
_UNNAMED = ("__call__", "__getitem__", "__iter__", "__len__", "__contains__", "__enter__", "__exit__", "__bool__")

_LIBRARIES = ("torch", "numpy", "math", "builtins", "typing", "functools", "itertools", "collections", "warnings")


def names_read(model: nn.Module) -> set[str] | None:
    """Returns the names that code reached from forward mentions; None where names are made while the code runs."""
    reader = _Reader(model)
    reader.follow()
    return None if reader.is_dynamic else reader.names


def _is_of_library(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).split(".")[0] in _LIBRARIES


class _Reader:
    """Follows names from the forward methods of a network through its code.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names: set[str] = set()
        self.is_dynamic = False
        self._objects = list(holders(model).values())
        self._classes: dict[type, None] = {}
        for held in self._objects:
            for kind in type(held).__mro__:
                if not _is_of_library(kind):
                    self._classes[kind] = None
        self._seen: set[int] = set()
        self._waiting: list[FunctionType] = []
        self._kept_alive: list[Any] = []

    def follow(self) -> None:
        """Starts at every forward method and hook, and goes on until no new name turns up."""
        for name in ("forward", *_UNNAMED):
            self._methods(name)
        for kind in self._classes:
            answers_any_name = "__getattr__" in vars(kind) or "__getattribute__" in vars(kind)
            self.is_dynamic |= answers_any_name
        for held in self._objects:
            if isinstance(held, nn.Module):
                for hook in (*held._forward_pre_hooks.values(), *held._forward_hooks.values()):
                    self._enter(hook)
        while self._waiting:
            function = self._waiting.pop()
            for code in _codes(function.__code__):
                self._read(code, function.__globals__)

    def _read(self, code: CodeType, scope: dict[str, Any]) -> None:
        constants = [value for value in code.co_consts if isinstance(value, str) and value.isidentifier()]
        if _DYNAMIC & set(code.co_names):
            self.is_dynamic = True
        if "getattr" in code.co_names:
            # Names may be put together of parts that are no identifiers, such as f"layer{i}".
            self.is_dynamic |= _builds_strings(code)
            names = {*code.co_names, *constants}
        else:
            names = set(code.co_names)
        namespaces = [scope.get(name) for name in names]
        for name in names:
            self._enter(scope.get(name))
            if name not in self.names:
                self.names.add(name)
                self._methods(name)
            for space in namespaces:
                if isinstance(space, ModuleType) and space.__name__.split(".")[0] not in _LIBRARIES:
                    self._enter(vars(space).get(name))

    def _methods(self, name: str) -> None:
        """Enters whatever the classes of the network, and its modules and plain objects themselves, call by a name."""
        for kind in self._classes:
            self._enter(vars(kind).get(name))
        for held in self._objects:
            own = vars(held).get(name)
            if own is not None and not isinstance(own, nn.Module):
                self._enter(own)

    def _enter(self, value: Any) -> None:
        """Notes code to be read: that of functions, methods, properties, wrapped functions and whole classes."""
        if value is None or id(value) in self._seen or _is_of_library(value):
            return
        self._seen.add(id(value))
        self._kept_alive.append(value)  # the number of an object that is gone may be another's
        if isinstance(value, FunctionType):
            self._waiting.append(value)
            for cell in value.__closure__ or ():
                try:
                    self._enter(cell.cell_contents)
                except ValueError:  # an empty cell
                    continue
        elif isinstance(value, (MethodType, staticmethod, classmethod)):
            self._enter(value.__func__)
        elif isinstance(value, property):
            self._enter(value.fget)
        elif isinstance(value, (functools.partial, functools.cached_property)):
            self._enter(value.func)
        elif isinstance(value, type) and not issubclass(value, nn.Module):
            for own in vars(value).values():
                self._enter(own)
        elif callable(value) and not isinstance(value, (nn.Module, type)):
            self._enter(type(value))


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yields compiled code with all functions, lambdas and comprehensions inside of it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _builds_strings(code: CodeType) -> bool:
    return any(instruction.opname in ("BUILD_STRING", "BINARY_OP") for instruction in dis.get_instructions(code))
