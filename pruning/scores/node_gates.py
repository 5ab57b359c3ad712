"""The derivative of the loss to a gate on each node, mostly without putting a gate in.

A gate c multiplies every slice that produces a node, so at c = 1 its derivative is the sum of w dL/dw over them. Where
the weight that acts is computed from others (weight norm, spectral norm, standardised weights) that sum says nothing,
often it is zero; the layer's output then gets a real gate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pruning.modules.calls import Batches
from pruning.modules.kinds import WEIGHTED, channel_dims
from pruning.scores.gradients import accumulate_gradients, require_signal
from pruning.state import PrunableState

_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PLAIN_FORWARDS = {kind.forward for kind in _PLAIN}


def node_gate_gradients(network: PrunableState, batches: Batches) -> Tensor:
    """Returns dL/dc per node for a gate c = 1 on everything that produces it, biases included, signed.

    L is the mean of the network's loss over the batches, in eval mode. Producers that are added up (residual networks)
    share the node's gate.
    """
    return gate_gradients(network, batches)[0]


def gate_gradients(network: PrunableState, batches: Batches) -> tuple[Tensor, dict[str, Tensor], float]:
    """Returns dL/dc per node, dL/dw per parameter, and L, all from one pass over the batches."""
    parameters = {name: p for name, p in network.model.named_parameters() if p.is_floating_point()}
    with _gates_where_needed(network) as gates:
        leaves = {f"gate of {gate.path}": gate.values for gate in gates}
        gradients, loss = accumulate_gradients(network, batches, names=list(parameters), extra=leaves)
    # A layer that never ran, or whose weight alone was read, has no outputs to gate.
    used = [gate for gate in gates if gate.used]
    done: set[str] = set()
    for gate in used:
        done.update(gate.parameters)
    # In one expression, so that no more than one product is held beside the gradients.
    products = {name: p.detach() * gradients[name] for name, p in parameters.items() if name not in done}
    nodes = sum_over_producers(network, products)
    for gate in used:
        along = torch.from_numpy(gate.along).to(nodes.device)
        slopes = gradients[f"gate of {gate.path}"].to(nodes)
        prunable = along >= 0
        nodes = nodes.index_add(0, along[prunable], slopes[prunable])
    return nodes, {name: gradients[name] for name in parameters}, loss


def elasticities(network: PrunableState, batches: Batches) -> tuple[dict[str, Tensor], Tensor]:
    """Returns |w dL/dw / L| per ranked weight and |dL/dc / L| per node, from one pass (CNIP, arXiv:2006.00896)."""
    nodes, gradients, loss = gate_gradients(network, batches)
    # One divisor for both kinds: it makes them elasticities and changes no rank within a pass.
    scale = max(abs(loss), 1e-8)
    weights = {}
    for name, weight in network.weights():
        weights[name] = (weight.detach() * gradients[name] / scale).abs()
    return require_signal(weights), nodes.abs() / scale


def sum_over_producers(network: PrunableState, products: Mapping[str, Tensor]) -> Tensor:
    """Returns per node the sum of w dL/dw, given by parameter, over all that produces it, biases included."""
    # A layer's own bias produces its outputs in whatever operation it is added.
    own_biases = set()
    for path, module in network.model.named_modules():
        if isinstance(module, WEIGHTED):
            own_biases.add(f"{path}.bias" if path else "bias")
    biases = {name: product for name, product in products.items() if name in own_biases}
    others = {name: product for name, product in products.items() if name not in own_biases}
    total = network.graph.reduce_to_nodes(others, role="producer")
    if not biases:
        return total
    return total + network.graph.reduce_to_nodes(biases, role="all").to(total)


class _Gate:
    """A gate on a layer's output channels.

    Args:
        path: of the layer.
        module: the layer.
        along: (channels,) the node of each output channel, -1 for none.
    """

    def __init__(self, path: str, module: nn.Module, along: np.ndarray) -> None:
        self.path = path
        self.along = along
        self.used = False
        self.parameters = [f"{path}.{name}" if path else name for name, _ in module.named_parameters()]
        like = next(module.parameters())
        self.values = torch.ones(len(along), dtype=like.dtype, device=like.device, requires_grad=True)
        # Channels of a convolution stand before its positions, those of a linear layer at the end.
        positions = 0 if isinstance(module, nn.Linear) else len(_kernel_of(module))
        self._shape = (-1, *[1] * positions)

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        self.used = True
        return output * self.values.view(self._shape)


def _kernel_of(module: nn.Module) -> tuple[int, ...]:
    if not isinstance(module, _ConvNd):
        raise TypeError(f"a gate stands behind Linear and Conv layers, not behind a {type(module).__name__}")
    return module.kernel_size


@contextmanager
def _gates_where_needed(network: PrunableState) -> Iterator[list[_Gate]]:
    """Puts gates on layers whose weight is computed; they stay until the backward passes are done."""
    sources = {path: name for name, path in network.owners().items()}
    gates, hooks = [], []
    try:
        for path, module in network.model.named_modules():
            if not isinstance(module, WEIGHTED) or path not in sources or acts_as_it_is(module):
                continue
            along = _nodes_of_outputs(network, module, sources[path])
            if along is None:
                continue
            gate = _Gate(path, module, along)
            gates.append(gate)
            hooks.append(module.register_forward_hook(gate))
        yield gates
    finally:
        for hook in hooks:
            hook.remove()


def acts_as_it_is(module: nn.Module) -> bool:
    """Says whether the layer multiplies by its own parameter, in torch's own forward."""
    return module._parameters.get("weight") is not None and type(module).forward in _PLAIN_FORWARDS


def _nodes_of_outputs(network: PrunableState, module: Any, source: str) -> np.ndarray | None:
    """Returns (channels,) the node of each of a layer's outputs, None where they are not those of its weight."""
    output_dim, _ = channel_dims(module)
    if output_dim == 0 or module.groups == module.in_channels > 1:
        along = network.graph.nodes_along(source, 0)
    else:  # each group makes channels of its own, coupled to those of the others
        along = np.tile(network.graph.nodes_along(source, 1), module.groups)
    channels = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    return along if len(along) == channels else None
