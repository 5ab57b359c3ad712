"""Layers that read nodes: what they see can be multiplied, node by node, and the factors folded into their columns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.errors import UsageError
from pruning.modules.calls import RUN_ERRORS, call_with, device_of, mapped, tensors_in
from pruning.modules.kinds import WEIGHTED, channel_dims
from pruning.modules.modes import eval_mode, same_random_state
from pruning.scores.node_gates import acts_as_it_is
from pruning.state import PrunableState
from pruning.trace.labels import CONSUMER, PRODUCER


@dataclass
class Reader:
    """A linear or convolutional layer that reads nodes.

    Args:
        path: of the layer.
        module: the layer.
        name: of its weight.
        dim: of the weight, the one that meets the input's channels.
        nodes: (columns,) the node of each column, -1 for none.
    """

    path: str
    module: Any
    name: str
    dim: int
    nodes: Tensor

    @property
    def weights_each(self) -> int:
        """How many weights one column has."""
        return int(self.module.weight.numel()) // len(self.nodes)

    def pick(self, values: Tensor, repeats: int = 1) -> Tensor:
        """Returns (..., nodes) values by column; 1 where a column is of no node."""
        nodes = self.nodes.repeat(repeats)
        one = values.new_ones(*values.shape[:-1], 1)
        # Index -1 finds the one at the end.
        return torch.cat([values, one], -1)[..., nodes]

    def columns(self, by_column: Tensor, weight: Tensor) -> Tensor:
        """Returns values by column in the shape that multiplies the weight."""
        shape = [1] * weight.dim()
        shape[self.dim] = -1
        return by_column.to(weight).view(shape)

    def gate(self, values: Tensor, inputs: Tensor) -> Tensor:
        """Multiplies the layer's input with (nodes,) values, or with (samples, nodes).

        Raises:
            UsageError: if there are values per sample and the layer does not see one row per sample.
        """
        is_linear = isinstance(self.module, nn.Linear)
        sides = 0 if is_linear else len(self.module.kernel_size)
        # Each group of a grouped convolution has the same columns, for channels of its own.
        repeats = 1 if is_linear or self.dim == 0 else self.module.groups
        factors = self.pick(values, repeats).to(inputs)
        after = (1,) * sides
        if factors.dim() == 1:
            return inputs * factors.view(-1, *after)
        # Between samples and channels may stand tokens: (samples, tokens, channels).
        between = inputs.dim() - sides - 2
        if between < 0 or len(inputs) != len(factors):
            raise UsageError(
                f"--local_rep needs layers that see one row per sample; {self.path} sees {tuple(inputs.shape)} for "
                f"{len(factors)} samples."
            )
        return inputs * factors.view(len(factors), *(1,) * between, -1, *after)


def find_readers(network: PrunableState) -> list[Reader]:
    """Returns the layers that read nodes; -1 stands for nodes that something else reads too, or that it makes itself.

    What reads a node elsewhere (attention's products, code that takes the weight without calling the layer) is found by
    trying it out: gates on the inputs must do the same as gates folded into the columns, and a closed one the same as
    all slices of its node set to zero.
    """
    readers = _candidates(network)
    trial = _Trial(network, readers)
    chosen = np.zeros(len(network.graph.nodes), dtype=bool)
    for reader in readers:
        chosen[reader.nodes[reader.nodes >= 0].numpy()] = True
    if not trial.passes(chosen):
        # One of the groups is to blame, mostly; the others need not suffer.
        for group in network.graph.groups:
            mine = np.isin(np.arange(len(chosen)), group.nodes) & chosen
            if mine.any() and not trial.passes(mine):
                chosen[mine] = False
    for reader in readers:
        known = torch.from_numpy(np.append(chosen, False))[reader.nodes]
        reader.nodes = torch.where(known, reader.nodes, -1).to(reader.module.weight.device)
    return [reader for reader in readers if bool((reader.nodes >= 0).any())]


def _candidates(network: PrunableState) -> list[Reader]:
    """Layers with columns whose nodes are read by such layers alone, as far as the graph knows."""
    graph, structure = network.graph, network.graph.structure
    roles = structure.roles[: structure.slice_labels]
    open_labels = (roles & CONSUMER > 0) & structure.alive[: structure.slice_labels]
    readers = []
    for path, module in network.model.named_modules():
        if not isinstance(module, WEIGHTED) or not acts_as_it_is(module):
            continue
        _, dim = channel_dims(module)
        name = graph.name_of(module.weight) or f"{path}.weight"
        labels = graph.traced.labels(name, dim)
        passes_on = roles[labels] & PRODUCER > 0
        if dim == 0 and len(labels) and module.groups == module.in_channels:
            open_labels[labels] = False  # depthwise: its rows hand the node on to whoever reads it next
        elif len(labels) and not passes_on.any():
            open_labels[labels] = False
            readers.append(Reader(path, module, name, dim, torch.from_numpy(structure.node_of_label[labels])))
    nodes = structure.node_of_label[: structure.slice_labels]
    # One more entry than nodes, so that -1 (no node) finds one too.
    is_read_elsewhere = torch.zeros(structure.count + 1, dtype=torch.bool)
    is_read_elsewhere[torch.from_numpy(nodes[open_labels])] = True
    for reader in readers:
        reader.nodes = torch.where(is_read_elsewhere[reader.nodes], -1, reader.nodes)
    return readers


def attach(readers: list[Reader], values: Callable[[], Tensor | None]) -> list[Any]:
    """Lets the readers see their inputs multiplied with values per node; returns the hooks.

    Args:
        readers: the layers.
        values: asked at each call: (nodes,) or (samples, nodes), or None for no change.
    """

    def gate(reader: Reader, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        now = values()
        if now is None:
            return None
        given = dict(kwargs)
        inputs = args[0] if args else given.pop("input")
        return (reader.gate(now, inputs), *args[1:]), given

    hooks = []
    for reader in readers:
        hooks.append(reader.module.register_forward_pre_hook(partial(gate, reader), with_kwargs=True))
    return hooks


def folded(readers: list[Reader], values: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the readers' weights with values per node in their columns; a weight that several layers share once."""
    by_weight = {reader.name: reader for reader in readers}
    found = {}
    for name, reader in by_weight.items():
        factors = reader.columns(reader.pick(values), weights[name])
        found[name] = weights[name] * factors
    return found


class _Trial:
    """A network on its example, with nothing zero or alike by accident, as scales and shifts are before training."""

    def __init__(self, network: PrunableState, readers: list[Reader]) -> None:
        self.network, self.readers = network, readers
        self.device = device_of(network.model)
        self.generator = torch.Generator().manual_seed(0)
        tensors = dict([*network.model.named_buffers(), *network.model.named_parameters()])
        self.weights = {name: self._varied(tensor.detach()) for name, tensor in tensors.items()}
        in_doubles: dict[str, Tensor] = {}
        for name, tensor in self.weights.items():
            in_doubles[name] = tensor.double() if tensor.is_floating_point() else tensor
        # The network's code may name a type, and some devices have no doubles.
        with contextlib.suppress(*RUN_ERRORS):
            self._outputs(in_doubles)
            self.weights = in_doubles

    def _varied(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or (tensor.dim() > 1 and tensor.std() > 0):
            return tensor
        noise = torch.rand(tensor.shape, generator=self.generator)
        return tensor + 0.1 * noise.to(tensor)

    def passes(self, nodes: np.ndarray) -> bool:
        """Says whether gates on these nodes (a mask over all) can be folded, and closed ones removed."""
        chosen = torch.from_numpy(nodes)
        drawn = 0.3 + 0.6 * torch.rand(len(nodes), generator=self.generator)
        values = torch.where(chosen, drawn, torch.ones(())).to(self.device)
        gated = self._outputs(self.weights, values)
        folded_weights = self.weights | folded(self.readers, values, self.weights)
        if not _alike(gated, self._outputs(folded_weights)):
            return False
        # Nodes of which the graph says that removing them changes others are closed, but never removed.
        exact = ~torch.from_numpy(self.network.graph.inexact)
        closed = chosen & exact & (drawn < 0.6)
        weights = self.weights | folded(self.readers, (~closed).to(values), self.weights)
        removed = self._without(closed.numpy(), weights)
        return _alike(self._outputs(weights), self._outputs(removed))

    def _without(self, nodes: np.ndarray, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All slices of these nodes set to zero."""
        result = dict(weights)
        for name, weight in weights.items():
            for dim in range(weight.dim()):
                along = self.network.graph.nodes_along(name, dim)
                gone = np.flatnonzero(nodes[along] & (along >= 0))
                if len(gone):
                    places = torch.from_numpy(gone).to(self.device)
                    result[name] = result[name].index_fill(dim, places, 0)
        return result

    def _outputs(self, weights: Mapping[str, Tensor], values: Tensor | None = None) -> list[Tensor]:
        model = self.network.model
        dtype = next(weight.dtype for weight in weights.values() if weight.is_floating_point())

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, dtype if tensor.is_floating_point() else tensor.dtype)

        inputs = mapped(self.network.example_inputs, cast)
        hooks = attach(self.readers, lambda: values)
        try:
            with eval_mode(model), torch.no_grad(), same_random_state(self.device):
                found = call_with(model, weights, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return tensors_in(found)


def _alike(one: list[Tensor], other: list[Tensor]) -> bool:
    """Says whether outputs differ by no more than rounding does."""
    for a, b in zip(one, other, strict=True):
        if not a.is_floating_point() or not a.numel():
            continue
        tolerance = torch.finfo(a.dtype).eps ** 0.5
        # Written so that NaN, which is not smaller than anything, counts as a difference.
        if not (a - b).abs().max() <= tolerance * b.abs().max():
            return False
    return True
