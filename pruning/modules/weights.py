"""Which parameters can lose single weights, and in which order their layers run."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from pruning.errors import UsageError
from pruning.modules.calls import RUN_ERRORS
from pruning.modules.modes import eval_mode, look

WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


def prunable_weights(model: nn.Module, example_inputs: Any = None) -> dict[str, str]:
    """Returns {parameter name: module path} for the weight of every Linear and Conv*, biases and norms excluded.

    The order is that of execution where an example is given (first and last layer are then what they seem), else
    that of definition. A weight shared by several layers is named once, after its first owner. A layer whose weight
    is reparametrised (weight_norm, spectral_norm) is named by the parameter that its weight is computed from; it is
    left out if a zero there is no zero in the weight (orthogonal).

    Raises:
        UsageError: for a lazy layer that no example has given a shape yet.
    """
    layers = _in_order_of_execution(model, example_inputs)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, str] = {}
    for path, module in layers:
        source = _weight_of(module)
        if isinstance(source, nn.parameter.UninitializedParameter):
            raise UsageError(f"{path!r} has no shape yet: give example inputs, or call the model once before.")
        name = names.get(id(source)) if source is not None else None
        if name is not None and name not in found:
            found[name] = path
    return found


def normalised_dimension(model: nn.Module, name: str, path: str) -> int | None:
    """Returns the dimension whose slices weight_norm divides by their length, None for any other weight.

    A slice without a single weight left would be 0 / 0, so each must keep one.
    """
    weight = model.get_parameter(name)
    for other, parameter in model.get_submodule(path).named_parameters():
        if "weight" in other and parameter.dim() == weight.dim() and parameter.shape != weight.shape:
            lengths = [d for d in range(weight.dim()) if parameter.shape[d] != 1]
            return lengths[0] if lengths else 0
    return None


def _weight_of(module: nn.Module) -> nn.Parameter | None:
    own = module._parameters.get("weight")
    if own is not None:
        return own
    with eval_mode(module), torch.no_grad():  # spectral norm would take a step of its iteration in training mode
        weight = getattr(module, "weight", None)
    shape = weight.shape if isinstance(weight, Tensor) else None
    candidates = [p for name, p in module.named_parameters() if "weight" in name and p.shape == shape]
    return next((source for source in candidates if _zeros_stay(module, source)), None)


@torch.no_grad()
def _zeros_stay(module: nn.Module, source: nn.Parameter) -> bool:
    """Whether zeros in the source of a reparametrised weight are zeros in the weight."""
    if not is_parametrized(module, "weight") or source.is_meta:
        return True  # the older hooks of weight_norm, spectral_norm and torch's own pruning only scale
    before = source.clone()
    # Like a chess board, so that no slice loses all its weights, which weight norm cannot bear.
    coordinates = torch.unravel_index(torch.arange(source.numel(), device=source.device), source.shape)
    gone = (torch.stack(coordinates).sum(0) % 2 == 1).view_as(source)
    try:
        with eval_mode(module):
            source.masked_fill_(gone, 0)
            weight = typing.cast(Tensor, module.weight)
            return not bool(weight[gone].any())
    finally:
        source.copy_(before)


def _in_order_of_execution(model: nn.Module, example_inputs: Any) -> list[tuple[str, nn.Module]]:
    layers: list[tuple[str, nn.Module]] = [item for item in model.named_modules() if isinstance(item[1], WEIGHTED)]
    if example_inputs is None:
        return layers
    calls: dict[str, int] = {}
    hooks = [module.register_forward_pre_hook(_recorder(calls, path)) for path, module in model.named_modules()]
    try:
        look(model, example_inputs)
    except RUN_ERRORS as error:
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise UsageError(f"{type(model).__name__} does not run on its example inputs: {said}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return _sorted_by_call(layers, calls)


def _recorder(calls: dict[str, int], path: str) -> Callable[[nn.Module, Any], None]:
    def record(module: nn.Module, inputs: Any) -> None:
        calls.setdefault(path, len(calls))

    return record


def _sorted_by_call(layers: list[tuple[str, nn.Module]], calls: Mapping[str, int]) -> list[tuple[str, nn.Module]]:
    """Layers by their first call.

    Attention reads the weight of its output layer without calling it: such a layer stands where its parent runs. What
    the example never reaches (auxiliary heads) follows its neighbour and cannot pass for the first or the last layer.
    """
    called = [calls[path] for path, _ in layers if path in calls]
    first, last = min(called, default=0) + 0.5, max(called, default=0) - 0.5
    places: dict[str, float] = {}
    previous = first
    for path, _ in layers:
        parent = None if path in calls else _silent_parent(path, [path for path, _ in layers], calls)
        neighbour = max(min(previous, last), min(first, last))
        places[path] = previous = calls.get(path, calls[parent] if parent else neighbour)
    return sorted(layers, key=lambda layer: places[layer[0]])


def _silent_parent(path: str, layers: list[str], calls: Mapping[str, int]) -> str | None:
    """The innermost module around a layer that ran, if it called none of the layers inside it."""
    parents = [path.rsplit(".", depth)[0] for depth in range(1, path.count(".") + 1)]
    parent = next((parent for parent in parents if parent in calls), None)
    inside = [layer for layer in layers if parent and layer.startswith(parent + ".")]
    return parent if inside and not any(layer in calls for layer in inside) else None


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns every parameter and buffer once, by its first name."""
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in found.items():
        if is_lazy(tensor):
            raise UsageError(f"{name} has no shape yet (a lazy module); run the network once, then build the graph.")
    for name, module in model.named_modules():
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
