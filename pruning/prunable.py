"""Which parameters can lose single weights, and in which order their layers run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pruning.count import call, quiet_eval

WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


def prunable_weights(model: nn.Module, example_inputs: Any = None) -> dict[str, str]:
    """Returns {parameter name: module path} for the weight of every Linear and Conv*, biases and norms excluded.

    The order is that of execution where an example is given (first and last layer are then what they seem), else
    that of definition. A weight shared by several layers is named once, after its first owner. A layer whose weight
    is reparametrised (weight_norm, spectral_norm) is named by the parameter that its weight is computed from.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, str] = {}
    for path, module in _in_order_of_execution(model, example_inputs):
        parameter = _weight_of(module)
        name = names.get(id(parameter)) if parameter is not None else None
        if name is not None and name not in found:
            found[name] = path
    return found


def _weight_of(module: nn.Module) -> nn.Parameter | None:
    own = module._parameters.get("weight")
    if own is not None:
        return own
    # A zero in the source of a reparametrised weight is a zero in the weight: both norms only scale it.
    weight = getattr(module, "weight", None)
    shape = weight.shape if isinstance(weight, Tensor) else None
    candidates = [p for name, p in module.named_parameters() if "weight" in name and p.shape == shape]
    return candidates[0] if candidates else None


def _in_order_of_execution(model: nn.Module, example_inputs: Any) -> list[tuple[str, nn.Module]]:
    layers = [(path, module) for path, module in model.named_modules() if isinstance(module, WEIGHTED)]
    if example_inputs is None:
        return layers
    seen: list[nn.Module] = []
    hooks = [module.register_forward_pre_hook(lambda module, _: seen.append(module)) for _, module in layers]
    try:
        with quiet_eval(model), torch.no_grad():
            call(model, example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    rank = {module: place for place, module in reversed(list(enumerate(seen)))}
    # Layers that the example never reaches (auxiliary heads) keep their place of definition, after the others.
    return sorted(layers, key=lambda item: rank.get(item[1], len(seen)))
