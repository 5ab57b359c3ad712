"""How a network is called: inputs of any form, batches, devices, and what a run may raise."""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


def device_of(model: nn.Module) -> torch.device:
    """Returns where the model's first parameter lies, the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def mapped(inputs: Any, change: Callable[[Tensor], Any]) -> Any:
    """Applies a function to every tensor in nested tuples, lists and dicts; everything else stays."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, MutableMapping):
        changed = copy.copy(inputs)  # of the same class: some give their entries as attributes too
        for key, value in inputs.items():
            changed[key] = mapped(value, change)
        return changed
    if isinstance(inputs, tuple) and hasattr(inputs, "_fields"):
        return type(inputs)(*(mapped(value, change) for value in inputs))
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(mapped(value, change) for value in inputs)
    return inputs


def tensors_in(value: Any, depth: int = 6) -> list[Tensor]:
    """Returns the tensors in whatever a network takes or returns: nested containers, data classes, plain objects."""
    if isinstance(value, Tensor):
        return [value]
    if not depth or isinstance(value, (str, bytes, nn.Module, type, ModuleType)):
        return []
    if isinstance(value, Mapping):
        value = value.values()
    elif dataclasses.is_dataclass(value):
        value = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    elif not isinstance(value, (list, tuple, set, frozenset, deque)):
        value = list(getattr(value, "__dict__", {}).values())
    return [tensor for item in value for tensor in tensors_in(item, depth - 1)]


def call(model: nn.Module, inputs: Any) -> Any:
    """Calls the model on a tensor, a tuple (or list) of arguments or a dict of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def call_with(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Any) -> Any:
    """Calls the model with other tensors in the place of its parameters and buffers, tied ones in all their places.

    `torch.func.functional_call` would leave plain tensors behind in a module that is registered twice.
    """
    own = (*model.named_parameters(), *model.named_buffers())
    given = {id(tensor): tensors[name] for name, tensor in own if name in tensors}
    registries: list[Any] = [held for module in model.modules() for held in (module._parameters, module._buffers)]
    kept = [(held, dict(held)) for held in registries]
    try:
        for held, content in kept:
            held.update({name: given.get(id(tensor), tensor) for name, tensor in content.items()})
        return call(model, inputs)
    finally:
        for held, content in kept:
            held.update(content)


def batch_size_of(inputs: Any) -> int:
    """Returns the first dimension of the first tensor found in the example inputs (at least 1)."""
    if isinstance(inputs, Tensor):
        return max(1, inputs.shape[0]) if inputs.dim() else 1
    values: Iterable[Any] = inputs.values() if isinstance(inputs, Mapping) else inputs
    return next((batch_size_of(value) for value in values if isinstance(value, (Tensor, tuple, list, Mapping))), 1)


def split_inputs(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the positional and keyword arguments of a call: a dict holds keywords, a tuple or list positions."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return (tuple(example_inputs), {}) if isinstance(example_inputs, (tuple, list)) else ((example_inputs,), {})


# What a run of somebody's network may raise; anything else (interrupts, exhausted memory) is not ours to catch.
RUN_ERRORS = (
    RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError, ArithmeticError,
)  # fmt: skip

Batches = Iterable[tuple[Tensor, Tensor]]
