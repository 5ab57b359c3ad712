"""Counts that every report uses: FLOPs (2 per multiply-add), bytes, and the state a count must not disturb."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry


@contextmanager
def quiet_eval(model: nn.Module) -> Iterator[None]:
    """Eval mode for a look at the model that leaves every module's own mode as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def same_random_state(device: torch.device) -> Iterator[None]:
    """Puts the global random state back at the end: networks that draw numbers must not change what comes after."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


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


def look(model: nn.Module, inputs: Any) -> Any:
    """Calls the model once in eval mode on its own device, without gradients and without a trace."""
    device = device_of(model)
    with quiet_eval(model), torch.no_grad(), same_random_state(device), plain_attention(), plain_recurrence(model):
        return call(model, mapped(inputs, lambda tensor: tensor.to(device)))


@contextmanager
def plain_attention() -> Iterator[None]:
    """Keeps attention in plain matrix products: fused kernels hide their products, and their layers, from view."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def plain_recurrence(model: nn.Module) -> Iterator[None]:
    """Keeps LSTM and GRU in plain matrix products: fused kernels hide them, and cuDNN has no gradient in eval mode."""
    with ExitStack() as stack:
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(warnings.catch_warnings())
            # Setting oneDNN's flags warns about settings of other vendors' devices.
            warnings.simplefilter("ignore", UserWarning)
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def flops_by_module(model: nn.Module, example_inputs: Any) -> dict[str, int]:
    """Returns forward FLOPs per module path ("" for the whole model) for the example as it is, all samples in it.

    Convolutions and matrix products count, 2 FLOPs per multiply-add; norms, activations and poolings do not.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        look(model, example_inputs)
    return _by_path(model, counter)


def flops_by_weight(
    model: nn.Module, example_inputs: Any, weights: Mapping[str, Tensor], owners: Mapping[str, str]
) -> tuple[int, dict[str, int]]:
    """Returns forward FLOPs of the whole model and those that multiply by each of the weights.

    Args:
        model: what is counted.
        example_inputs: what it is called with; all samples in it count.
        weights: name -> weight. A product belongs to the weight that it reads, wherever it is called from: layers
            that share a weight, and attention that reads the weight of a layer it never calls, are counted too.
        owners: name -> module path, for weights that are computed from the one named (weight norm).
    """
    counter, reads = FlopCounterMode(display=False), _Reads(weights)
    # The counter goes on top, so that it has decomposed operations before `reads` sees them.
    with reads, counter:
        look(model, example_inputs)
    by_path = _by_path(model, counter)
    found = {name: reads.flops[name] or by_path.get(owners[name], 0) for name in weights}
    return by_path[""], found


class _Reads(TorchDispatchMode):
    """Adds up the FLOPs of operations per weight that they read."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        # Views (a transposed weight) share the storage.
        self.names = {weight.untyped_storage()._cdata: name for name, weight in weights.items()}
        self.flops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            storages = {tensor.untyped_storage()._cdata for tensor in tensors_in(args)}
            for name in {self.names[storage] for storage in storages if storage in self.names}:
                self.flops[name] += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _by_path(model: nn.Module, counter: FlopCounterMode) -> dict[str, int]:
    root = type(model).__name__
    counts = {"": counter.get_total_flops()}
    for path, by_operation in counter.get_flop_counts().items():
        if path.startswith(root + "."):
            counts[path[len(root) + 1 :]] = sum(by_operation.values())
    return counts


def batch_size_of(inputs: Any) -> int:
    """Returns the first dimension of the first tensor found in the example inputs (at least 1)."""
    if isinstance(inputs, Tensor):
        return max(1, inputs.shape[0]) if inputs.dim() else 1
    values: Iterable[Any] = inputs.values() if isinstance(inputs, Mapping) else inputs
    return next((batch_size_of(value) for value in values if isinstance(value, (Tensor, tuple, list, Mapping))), 1)


def parameter_bytes(model: nn.Module) -> int:
    """Returns the bytes of all parameters as stored, masked weights included."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def latency(model: nn.Module, inputs: Any, repeats: int = 15) -> float:
    """Returns the median seconds of a forward pass in eval mode on the inputs as they are, after a warm-up."""
    return statistics.median(timings([model], inputs, repeats)[0])


def timings(models: Sequence[nn.Module], inputs: Any, repeats: int) -> list[list[float]]:
    """Returns the seconds of forward passes in eval mode, per model, after a warm-up.

    The models take turns, so that a machine that others use too slows all of them alike.
    """
    times: list[list[float]] = [[] for _ in models]
    with ExitStack() as modes, torch.no_grad():
        for model in models:
            modes.enter_context(quiet_eval(model))
        for turn in range(repeats + 3):
            for model, seconds in zip(models, times, strict=True):
                start = time.perf_counter()
                call(model, inputs)
                device = device_of(model)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if turn >= 3:
                    seconds.append(time.perf_counter() - start)
    return times
