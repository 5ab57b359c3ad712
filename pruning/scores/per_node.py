"""Values per node, and what counts as a weight in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from pruning.modules.kinds import WEIGHTED
from pruning.modules.modes import eval_mode
from pruning.scores.gradients import _wide
from pruning.state import PrunableState


def weights_only(network: PrunableState) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, values) of everything that multiplies: all parameters but biases and shifts.

    A layer whose weight is computed (weight norm) gives the weight that acts, under the name of what it is computed
    from, and nothing else. Half precision is widened: sums over thousands of weights would come out alike.
    """
    computed, hidden = _computed_weights(network)
    for name, parameter in network.model.named_parameters():
        own_name = name.rpartition(".")[2]
        multiplies = name not in hidden and "bias" not in own_name
        if name not in computed and not multiplies:
            continue
        values = computed.get(name, parameter).detach()
        if values.is_floating_point():
            yield name, values.to(_wide(values.dtype))


@torch.no_grad()
def _computed_weights(network: PrunableState) -> tuple[dict[str, Tensor], set[str]]:
    """Returns source -> weight as the layer applies it, and all parameters of such layers."""
    computed: dict[str, Tensor] = {}
    hidden: set[str] = set()
    for name, path in network.owners().items():
        module = network.model.get_submodule(path)
        if not isinstance(module, WEIGHTED) or module._parameters.get("weight") is not None:
            continue
        with eval_mode(module):
            for hook in module._forward_pre_hooks.values():  # the older norms compute it before each call
                hook(module, ())
            computed[name] = torch.as_tensor(module.weight)
        for own_name, _ in module.named_parameters():
            hidden.add(f"{path}.{own_name}" if path else own_name)
    return computed, hidden


def norm_scales(network: PrunableState) -> Iterator[tuple[str, Parameter]]:
    """Yields (name, scale) of every normalisation layer that has one."""
    for path, module in network.model.named_modules():
        scale = getattr(module, "weight", None)
        # Norms of torch, and those that networks bring along: an RMSNorm or LayerNorm2d of their own.
        if isinstance(scale, Parameter) and scale.dim() == 1 and "norm" in type(module).__name__.lower():
            yield f"{path}.weight" if path else "weight", scale


def channels_read(network: PrunableState, name: str) -> tuple[int, np.ndarray]:
    """Returns the dimension along which a weight reads channels, and their nodes, -1 for those that are none.

    A weight whose inputs do not lie along one dimension counts as no reader. Neither does a depthwise layer: a channel
    alone makes outputs that go with it, so those who read them decide.
    """
    weight = network.model.get_parameter(name)
    module = network.model.get_submodule(network.owners()[name])
    depthwise = getattr(module, "groups", 1) == getattr(module, "in_channels", 0) > 1
    dim = network.input_dim(name)
    if depthwise or dim is None:  # of a bilinear layer two dimensions read, each for itself half of what is multiplied
        return 1, np.full(weight.shape[1], -1)
    return dim, network.graph.nodes_along(name, dim, role="consumer")


def over_group(network: PrunableState, values: Tensor, reduce: Literal["mean", "amax", "amin"] = "mean") -> Tensor:
    """Returns for each node the mean, largest or smallest of its group's values; gradients pass."""
    groups = torch.from_numpy(network.graph.structure.group_of_node).to(values.device)
    count = int(groups.max()) + 1 if len(groups) else 0
    joined = values.new_zeros(count)
    if reduce == "mean":
        sizes = torch.bincount(groups, minlength=count)
        joined = joined.index_add(0, groups, values) / sizes.to(values.dtype)
    else:
        joined = joined.scatter_reduce(0, groups, values, reduce, include_self=False)
    return joined[groups]
