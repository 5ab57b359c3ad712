"""How a network is called: inputs of any form, batches, devices, and what a run may raise."""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import UsageError

# What criteria score on: pairs (inputs, targets), or dicts that hold the targets as "labels".
Batches = Iterable[Any]

LABELS = "labels"  # the key of the targets in a batch that is a dict, as in transformers

# What a run of somebody's network may raise; anything else (interrupts, exhausted memory) is not ours to catch.
RUN_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    AssertionError,
    LookupError,
    AttributeError,
    ArithmeticError,
)


_WITHOUT_PARTS = frozenset((bool, int, float, str, bytes, type(None), torch.dtype, torch.device, torch.Size))


def check_network(model: Any) -> None:
    """Raises UsageError for what is no network: a class, a state dict, a path, a function."""
    if isinstance(model, nn.Module):
        return
    given = f"something of type {type(model).__name__}"
    hint = ""
    if isinstance(model, type):
        given = f"the class {model.__name__}"
        hint = f"; an object of it is made by {model.__name__}(...)"
    elif isinstance(model, Mapping):
        hint = "; a state dict is loaded into a network by load_pruned(network, state_dict)"
    raise UsageError(f"A network is an nn.Module, not {given}{hint}.")


def device_of(model: nn.Module) -> torch.device:
    """Returns where the model's first parameter lies, the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def mapped(inputs: Any, change: Callable[[Tensor], Any]) -> Any:
    """Applies a function to every tensor in nested tuples, lists, dicts and data classes; everything else stays."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, MutableMapping):
        # A copy, so that it stays of its own class: transformers' BatchEncoding gives its entries as attributes too.
        changed = copy.copy(inputs)
        for key, value in inputs.items():
            changed[key] = mapped(value, change)
        return changed
    if isinstance(inputs, (tuple, list)):
        values = [mapped(value, change) for value in inputs]
        is_named_tuple = hasattr(inputs, "_fields")
        return type(inputs)(*values) if is_named_tuple else type(inputs)(values)
    if dataclasses.is_dataclass(inputs) and not isinstance(inputs, type):
        other: Any = copy.copy(inputs)
        for field in dataclasses.fields(inputs):
            value = getattr(inputs, field.name, None)
            object.__setattr__(other, field.name, mapped(value, change))  # a frozen one too
        return other
    return inputs


_SCALARS = (int, float, bool, str, bytes, type(None), complex, torch.dtype, torch.device)


def pair_of(batch: Any) -> tuple[Any, Any]:
    """Returns (inputs, targets) of a batch: of such a pair, or of a dict whose targets are its "labels".

    Raises:
        UsageError: for anything else.
    """
    if isinstance(batch, Mapping):
        if batch.get(LABELS) is None:
            keys = ", ".join(map(str, batch)) or "nothing"
            raise UsageError(
                f"A batch is a dict of {keys}, without {LABELS!r}: what is the network to say? Give {LABELS!r} in it, "
                "or pairs (inputs, targets)."
            )
        inputs = copy.copy(batch) if isinstance(batch, MutableMapping) else dict(batch)
        return inputs, inputs.pop(LABELS)
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        kind = type(batch).__name__
        raise UsageError(
            f"A batch must be a pair (inputs, targets), or a dict with {LABELS!r}; a {kind} came that is neither."
        )
    return batch[0], batch[1]


def pairs(batches: Batches) -> Iterator[tuple[Any, Any]]:
    """Yields (inputs, targets) of the batches that have a sample in them; raises UsageError for what is no batch."""
    for batch in batches:
        inputs, targets = pair_of(batch)
        # The last batch of a loader may be empty; inputs without any tensor are the network's own business.
        sizes = [tensor.numel() for tensor in tensors_in(inputs)]
        if any(sizes) or not sizes:
            yield inputs, targets


def inputs_for(loss: Any, model: nn.Module, inputs: Any, targets: Any) -> Any:
    """Returns what the model is called with for a loss: one that the model computes itself wants the targets there."""
    completed = getattr(loss, "inputs_for", None)
    return completed(model, inputs, targets) if completed else inputs


def tensors_in(value: Any, depth: int = 6) -> list[Tensor]:
    """Returns the tensors in whatever a network takes or returns: nested containers, data classes, plain objects."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, _SCALARS):  # most of what modules keep; the questions below take longer
        return []
    found: list[Tensor] = []
    if depth and type(value) not in _WITHOUT_PARTS:  # objects may refer to each other in a circle
        for _, part in parts_of(value):
            found += tensors_in(part, depth - 1)
    return found


def parts_of(value: Any) -> list[tuple[str, Any]]:
    """Returns (name, part) of a container, data class or plain object; the name is "" where there are only places."""
    # A module holds the whole network.
    if isinstance(value, (Tensor, str, bytes, nn.Module, type, ModuleType)):
        return []
    if isinstance(value, Mapping):
        return [(str(name), part) for name, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return [("", part) for part in value]
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    return list(getattr(value, "__dict__", {}).items())


def call(model: nn.Module, inputs: Any) -> Any:
    """Calls the model on a tensor, a tuple (or list) of arguments or a dict of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def call_with(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Any) -> Any:
    """Calls the model with other tensors in the place of its parameters and buffers, tied ones in all their places.

    `torch.func.functional_call` would leave plain tensors behind in a module that is registered twice.
    """
    replacements: dict[int, Tensor] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in tensors:
            replacements[id(tensor)] = tensors[name]
    with replaced(model, replacements):
        return call(model, inputs)


@contextmanager
def replaced(model: nn.Module, tensors: Mapping[int, Tensor]) -> Iterator[None]:
    """Puts other tensors in the place of parameters and buffers for a while.

    Args:
        model: whose registries hold others meanwhile, and at the end what they held before.
        tensors: id of a parameter or buffer -> what takes its place, wherever it stands: a tied one stands in several.
    """
    registries: list[dict[str, Any]] = []
    for module in model.modules():
        registries += [module._parameters, module._buffers]
    before = [dict(registry) for registry in registries]
    try:
        for registry in registries:
            for name, own in registry.items():
                registry[name] = tensors.get(id(own), own)
        yield
    finally:
        for registry, content in zip(registries, before, strict=True):
            registry.update(content)


def scores_of(outputs: Any) -> Any:
    """Returns the tensor that losses and measures take of whatever a network returns: its `logits`, or its only one.

    Libraries wrap it in a data class or a dict: transformers under `logits`, torchvision's segmentation under `out`.
    What holds no such tensor is returned as it came.
    """
    if isinstance(outputs, Tensor):
        return outputs
    for name in ("logits", "out"):
        found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if isinstance(found, Tensor):
            return found
    found = tensors_in(outputs)
    return found[0] if len(found) == 1 else outputs


def batch_size_of(inputs: Any) -> int:
    """Returns the first dimension of the first tensor found in the example inputs (at least 1)."""
    if isinstance(inputs, Tensor):
        return max(1, inputs.shape[0]) if inputs.dim() else 1
    values: Iterable[Any] = inputs.values() if isinstance(inputs, Mapping) else inputs
    for value in values:
        if isinstance(value, (Tensor, tuple, list, Mapping)):
            return batch_size_of(value)
    return 1


def samples_in(targets: Any) -> int:
    """Returns how many samples the targets of a batch are for: rows of the first tensor, or dicts in a list."""
    if isinstance(targets, (tuple, list)) and targets and isinstance(targets[0], Mapping):
        return len(targets)  # detectors have a dict for each picture
    tensors = tensors_in(targets)
    return batch_size_of(tensors[0]) if tensors else 1


def split_inputs(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the positional and keyword arguments of a call: a dict holds keywords, a tuple or list positions."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


class OnScores:
    """One of torch's own losses, which take tensors, for networks that return theirs in a data class or a dict."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.loss = loss
        self.__name__ = getattr(loss, "__name__", type(loss).__name__)

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        return self.loss(scores_of(outputs), targets)


def takes_anything(loss: Any) -> bool:
    """Says whether a loss may know what to do with outputs that are no tensor: any but torch's own."""
    owner = loss if hasattr(loss, "__name__") else type(loss)
    return not str(getattr(owner, "__module__", "")).startswith("torch.")
