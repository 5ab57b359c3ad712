"""Which parameters can lose single weights, and in which order their layers run."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from pruning.errors import UsageError
from pruning.modules.calls import RUN_ERRORS
from pruning.modules.modes import eval_mode, look

WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)

# Layer type -> (output, input) dimension of its weight; any other layer has its outputs along dimension 0.
_CHANNEL_DIMS: dict[type[nn.Module], tuple[int, int]] = {
    nn.modules.conv._ConvTransposeNd: (1, 0),
    nn.Embedding: (1, 0),
    nn.EmbeddingBag: (1, 0),
}

Layers = list[tuple[str, nn.Module]]  # paths and modules


def prunable_weights(model: nn.Module, example_inputs: Any = None) -> dict[str, str]:
    """Returns {parameter name: module path} for the weight of every Linear and Conv*, biases and norms excluded.

    The order is that of execution where an example is given (first and last layer are then what they seem), else
    that of definition. A weight shared by several layers is named once, after its first owner. A layer whose weight
    is reparametrised (weight_norm, spectral_norm) is named by the parameter that its weight is computed from; it is
    left out if a zero there is no zero in the weight (orthogonal).

    Raises:
        UsageError: for a lazy layer that no example has given a shape yet, and for a sparse weight.
    """
    check_dense(dict(model.named_parameters()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, str] = {}
    for path, module in _in_order_of_execution(model, example_inputs):
        source = _weight_of(module)
        if isinstance(source, nn.parameter.UninitializedParameter):
            raise UsageError(f"{path!r} has no shape yet: give example inputs, or call the model once before.")
        name = names.get(id(source))
        if name is not None:
            found.setdefault(name, path)
    return found


def channel_dims(module: nn.Module) -> tuple[int, int]:
    """Returns the dimensions of a layer's weight along which its output and its input channels lie."""
    for kind, dims in _CHANNEL_DIMS.items():
        if isinstance(module, kind):
            return dims
    return (0, 1)


def normalised_dimension(model: nn.Module, name: str, path: str) -> int | None:
    """Returns the dimension whose slices weight_norm divides by their length, None for any other weight.

    A slice without a single weight left would be 0 / 0, so each must keep one.
    """
    weight = model.get_parameter(name)
    for other, lengths in model.get_submodule(path).named_parameters():
        # The lengths have the weight's dimensions, all of size 1 but the one whose slices they are of.
        if "weight" not in other or lengths.dim() != weight.dim() or lengths.shape == weight.shape:
            continue
        wide = [dim for dim in range(weight.dim()) if lengths.shape[dim] != 1]
        return wide[0] if wide else 0
    return None


def _weight_of(module: nn.Module) -> nn.Parameter | None:
    own = module._parameters.get("weight")
    if own is not None:
        return own
    # Spectral norm would take a step of its iteration in training mode.
    with eval_mode(module), torch.no_grad():
        weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    for name, source in module.named_parameters():
        if "weight" in name and source.shape == weight.shape and _zeros_stay(module, source):
            return source
    return None


@torch.no_grad()
def _zeros_stay(module: nn.Module, source: nn.Parameter) -> bool:
    """Whether zeros in the source of a reparametrised weight are zeros in the weight."""
    if not is_parametrized(module, "weight") or source.is_meta:
        # The older hooks of weight_norm, spectral_norm and torch's own pruning only scale.
        return True
    before = source.clone()
    # Like a chess board, so that no slice loses all its weights, which weight norm cannot bear.
    positions = torch.arange(source.numel(), device=source.device)
    coordinates = torch.stack(torch.unravel_index(positions, source.shape))
    gone = (coordinates.sum(0) % 2 == 1).view_as(source)
    try:
        with eval_mode(module):
            source.masked_fill_(gone, 0)
            weight = typing.cast(Tensor, module.weight)
            return not bool(weight[gone].any())
    finally:
        source.copy_(before)


def _in_order_of_execution(model: nn.Module, example_inputs: Any) -> Layers:
    layers: Layers = [item for item in model.named_modules() if isinstance(item[1], WEIGHTED)]
    if example_inputs is None:
        return layers
    return _sorted_by_call(layers, _first_calls(model, example_inputs))


def _first_calls(model: nn.Module, example_inputs: Any) -> dict[str, int]:
    """Runs the model once; returns module path -> how many modules were called before it for the first time."""
    calls: dict[str, int] = {}

    def record(path: str, module: nn.Module, inputs: Any) -> None:
        calls.setdefault(path, len(calls))

    hooks = []
    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):  # which refuse hooks, and hold no layer that counts
            hooks.append(module.register_forward_pre_hook(partial(record, path)))
    try:
        look(model, example_inputs)
    except RUN_ERRORS as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise UsageError(
            f"{type(model).__name__} does not run on its example inputs: {type(error).__name__}: {first_line}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _sorted_by_call(layers: Layers, calls: Mapping[str, int]) -> Layers:
    """Layers by their first call.

    Attention reads the weight of its output layer without calling it: such a layer stands where its parent runs. What
    the example never reaches (auxiliary heads) follows its neighbour and cannot pass for the first or the last layer.
    """
    paths = [path for path, _ in layers]
    called = [calls[path] for path in paths if path in calls]
    # Between the first and the last layer that ran, half a place away from either.
    after_first = min(called, default=0) + 0.5
    before_last = max(called, default=0) - 0.5
    places: dict[str, float] = {}
    previous = after_first
    for path in paths:
        parent = _silent_parent(path, paths, calls)
        if path in calls:
            place: float = calls[path]
        elif parent is not None:
            place = calls[parent]
        else:
            place = max(min(previous, before_last), min(after_first, before_last))
        places[path] = previous = place
    return sorted(layers, key=lambda layer: places[layer[0]])


def _silent_parent(path: str, layers: list[str], calls: Mapping[str, int]) -> str | None:
    """The innermost module around a layer that ran, if it called none of the layers inside it."""
    parent = path.rpartition(".")[0]
    while parent and parent not in calls:
        parent = parent.rpartition(".")[0]
    if not parent:
        return None
    inside = [layer for layer in layers if layer.startswith(parent + ".")]
    return None if any(layer in calls for layer in inside) else parent


def check_dense(parameters: Mapping[str, Tensor]) -> None:
    """Raises UsageError for a parameter that is not stored value by value (sparse CSR, COO): nothing can be cut."""
    for name, parameter in parameters.items():
        if parameter.layout != torch.strided:
            kind = str(parameter.layout).removeprefix("torch.")
            raise UsageError(f"{name} is stored as {kind}; give it dense, by to_dense(). Zeros can become masks.")


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns every parameter and buffer once, by its first name."""
    modules = dict(model.named_modules())
    parameters = _once(modules, "_parameters")
    check_dense(parameters)
    found = {**parameters, **_once(modules, "_buffers")}
    for name, tensor in found.items():
        if is_lazy(tensor):
            raise UsageError(f"{name} has no shape yet (a lazy module); run the network once, then build the graph.")
    for name, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError(
                f"{name or 'the model'} is a scripted module, whose tensors cannot be cut; give the original."
            )
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise UsageError(
                "DistributedDataParallel keeps buffers of its parameters' sizes; give its .module, and wrap it again "
                "after pruning."
            )
    return found


def _once(modules: dict[str, nn.Module], registry: str) -> dict[str, Tensor]:
    """Returns the tensors of one of the modules' registries, each by its first name."""
    found = {}
    known = set()
    for path, module in modules.items():
        for name, tensor in getattr(module, registry).items():
            if tensor is not None and id(tensor) not in known:
                known.add(id(tensor))
                found[f"{path}.{name}" if path else name] = tensor
    return found
