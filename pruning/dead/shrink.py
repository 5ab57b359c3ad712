"""Turns masks into smaller tensors: removes the nodes that a network of masked weights does not need.

    network.prune(SNIP(), batches, sparsity=0.98)
    print(shrink_dead(network))

A node may go if nothing that reads it reaches the output, or if nothing of the input reaches it: it then emits a
constant, and what its readers make of that constant goes into their biases, where it is the same at every position.
Weights that are all zero propose; every choice is tried out on random inputs before anything is touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.cut.plan import Companion, PruningPlan
from pruning.dead.verify import Bench, Reader
from pruning.errors import UsageError
from pruning.graph.graph import DependencyGraph
from pruning.prune.layout import NodeSelection
from pruning.state import PrunableState
from pruning.trace.components import Mask


@dataclass
class ShrinkReport:
    """What `shrink_dead` did.

    Args:
        nodes: how many are gone.
        parameters: how many the network holds less.
        constants: how many nodes stay although they emit a constant: it meets zero padding, or a reader that has
            nowhere to put it.
        reason: what kept dead nodes from going, "" if nothing did.
    """

    nodes: int = 0
    parameters: int = 0
    constants: int = 0
    reason: str = ""

    def __str__(self) -> str:
        stay = f"; {self.constants:,} more emit a constant that no bias can take over" if self.constants else ""
        why = f"; others stay: {self.reason}" if self.reason else ""
        return f"{self.nodes:,} dead nodes removed, {self.parameters:,} parameters less{stay}{why}"


def shrink_dead(
    network: PrunableState, *, optimizers: Iterable[torch.optim.Optimizer] = (), cut_along: Iterable[Companion] = ()
) -> ShrinkReport:
    """Removes nodes that are dead because of weights that are zero; in eval mode the network computes what it did.

    Weights that are exactly zero count, masked or not. Where all of a layer is dead, one node of it stays. Nodes whose
    removal would change a statistic (layer norm) stay.

    Args:
        network: a PrunableNetwork; its masks, counts and graph follow.
        optimizers: whose state is cut along.
        cut_along: what else is cut along, as in `PruningPlan.exec`; no constants are folded into those.

    Raises:
        UsageError: without example inputs, or if something cannot be cut along; the step that failed changes nothing.
    """
    if not isinstance(getattr(network, "model", None), nn.Module):
        raise UsageError(f"shrink_dead takes a PrunableNetwork, not a {type(network).__name__}.")
    optimizers = _listed(optimizers)
    cut_along = [network.masks.keep, *_listed(cut_along)]
    report = ShrinkReport()
    parameters_before = _parameters(network)
    network.enforce()
    # Each removal may leave others dead.
    while gone := _remove_dead(network, report, optimizers, cut_along):
        network.masks.refresh()
        report.nodes += gone
    report.parameters = parameters_before - _parameters(network)
    return report


def _listed(values: Any) -> list[Any]:
    return [values] if isinstance(values, (torch.optim.Optimizer, nn.Module, Mapping)) else list(values)


def _parameters(network: PrunableState) -> int:
    return sum(parameter.numel() for parameter in network.model.parameters())


def _remove_dead(network: PrunableState, report: ShrinkReport, optimizers: list[Any], cut_along: list[Any]) -> int:
    """Removes all nodes that are dead now; others may be once they are gone. Returns how many it removed."""
    graph = network.graph
    graph.traced.refresh()
    report.constants, report.reason = 0, ""
    search = _Search(graph)
    if not search.suspects.any():
        return 0
    bench = Bench(network.model, network.example_inputs, network.outputs)
    search.look_at(bench.readers)
    report.constants = int((search.suspects & search.blocked).sum())
    dead = search.dead()
    gone = search.proven(dead, bench)
    if (dead & ~gone).any():
        report.reason = "on random inputs they made a difference"
    if not gone.any():
        return 0
    try:
        plan = _planned(graph, gone)
    except UsageError as error:
        # A hard-coded width; the network works on as it is.
        report.reason = str(error)
        return 0
    shifts = search.shifts(np.isin(np.arange(len(gone)), plan.nodes))
    with _added(graph.named(), shifts):
        plan.exec(optimizers, cut_along)
    return len(plan.nodes)


def _planned(graph: DependencyGraph, gone: Mask) -> PruningPlan:
    """Returns the plan to remove nodes, or, where code fails on a single channel, all but two of each group."""
    try:
        return graph.plan(gone)
    except UsageError:
        selection = NodeSelection(graph.structure.group_of_node, min_keep=2)
        stays = selection.keep_above(torch.from_numpy(~gone).double(), 1.0)
        if stays.all():
            raise
        return graph.plan(~stays.numpy())


@contextlib.contextmanager
@torch.no_grad()
def _added(tensors: Mapping[str, Tensor], shifts: Mapping[str, Tensor]) -> Iterator[None]:
    """Adds to biases and means; takes it back if what follows fails."""
    before = {name: tensors[name].detach().clone() for name in shifts}
    for name, shift in shifts.items():
        tensors[name].copy_(tensors[name].double() + shift)
    try:
        yield
    except BaseException:
        for name, value in before.items():
            tensors[name].copy_(value)
        raise


class _Search:
    """The dead nodes of a network as it is.

    Args:
        graph: nodes and their slices.
    """

    def __init__(self, graph: DependencyGraph) -> None:
        self.graph = graph
        self.parameters = {name: t.detach() for name, t in graph.tensors.items() if isinstance(t, nn.Parameter)}
        self.matrices = {name: tensor for name, tensor in self.parameters.items() if tensor.dim() > 1}
        self.readers: dict[str, list[Reader]] = {}
        self.connected = {name: tensor != 0 for name, tensor in self.matrices.items()}
        is_read, read = self._touched("consumer", self.connected)
        is_made, made = self._touched("producer", self.connected)
        self.constant: Mask = is_read & is_made & (~made | self._filtered_out())
        self.suspects: Mask = is_read & ~graph.inexact & (self.constant | ~read)
        self.blocked: Mask = np.zeros(len(self.constant), dtype=bool)

    def _along(self, role: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, int, np.ndarray]]:
        """Yields (name, dimension, node per index) of all dimensions that play a role for any node."""
        for name, tensor in tensors.items():
            for dim in range(tensor.dim()):
                nodes = self.graph.nodes_along(name, dim, role)
                if (nodes >= 0).any():
                    yield name, dim, nodes

    def _touched(self, role: str, flags: Mapping[str, Tensor]) -> tuple[Mask, Mask]:
        """Returns per node: does it have slices of this role, and is any flag in them set."""
        there = np.zeros(len(self.graph.nodes), dtype=bool)
        touched = np.zeros(len(self.graph.nodes), dtype=bool)
        for name, dim, nodes in self._along(role, flags):
            is_node = nodes >= 0
            there[nodes[is_node]] = True
            touched[nodes[is_node & _any_along(flags[name], dim)]] = True
        return there, touched

    def _filtered_out(self) -> Mask:
        """Returns the nodes whose values a depthwise filter of zeros cuts off: what comes after it is a constant."""
        makers = np.zeros(len(self.graph.nodes), dtype=np.int64)
        cut_off = np.zeros(len(self.graph.nodes), dtype=bool)
        depthwise = _depthwise_weights(self.graph.model)
        for name, dim, nodes in self._along("producer", self.matrices):
            if name in depthwise:
                is_zero = ~_any_along(self.connected[name], dim)
                cut_off[nodes[(nodes >= 0) & is_zero]] = True
            else:
                makers[np.unique(nodes[nodes >= 0])] += 1
        # Where several layers make a node, they are added up, and the others may come in after the filter.
        return cut_off & (makers == 1)

    # -- readers ---------------------------------------------------------------------------------------------------

    def look_at(self, readers: list[Reader]) -> None:
        """Finds the nodes that a reader cannot do without, given what it was seen to be given."""
        for reader in readers:
            weight = reader.module._parameters["weight"]
            name = self.graph.traced.names.get(id(weight), "")
            self.readers.setdefault(name, []).append(reader)
        for name, dim, nodes in self._along("consumer", self.matrices):
            is_silent = ~_any_along(self.connected[name], dim)
            is_absorbed = self._absorbed(name, dim) & self.constant[nodes]
            needs_it = (nodes >= 0) & ~(is_silent | is_absorbed)
            self.blocked[nodes[needs_it]] = True

    def _absorbed(self, name: str, dim: int) -> Mask:
        """Returns per column of a weight: its input is zero, or a constant that every reader can take over."""
        weight = self.matrices[name]
        readers = self.readers.get(name, [])
        if dim != 1 or not readers:
            return np.zeros(weight.shape[dim], dtype=bool)
        absorbed = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
        for reader in readers:
            by_group = (-1, weight.shape[1])  # each group of a convolution reads channels of its own
            is_zero = (reader.low == 0) & (reader.high == 0)
            fits = reader.steady().view(by_group).all(0) & (reader.absorber is not None)
            outer = reader.padded_taps()
            if outer is not None:
                # Zeros of the padding make the constant another one at the border.
                at_the_border = weight[:, :, outer.to(weight.device)] != 0
                fits = fits & ~at_the_border.any(2).any(0)
            absorbed &= (is_zero.view(by_group).all(0) | fits).to(absorbed.device)
        return absorbed.cpu().numpy()

    def shifts(self, gone: Mask) -> dict[str, Tensor]:
        """Returns what readers must add to their biases (or take off their norms' means) instead of these nodes."""
        found: dict[str, Tensor] = {}
        named = self.graph.named()
        for name, dim, nodes in self._along("consumer", self.matrices):
            chosen = (nodes >= 0) & gone[nodes] & _any_along(self.connected[name], dim)
            if dim != 1 or not chosen.any():
                continue
            for reader in self.readers.get(name, ()):
                change = _contribution(self.matrices[name], reader, torch.from_numpy(chosen))
                if reader.absorber is None or not change.any():
                    continue
                absorber, sign = reader.absorber
                # Tied tensors have several names, of which the graph knows the first.
                first_name = self.graph.traced.names[id(named[absorber])]
                found[first_name] = found.get(first_name, 0) + sign * change
        return found

    # -- proof -----------------------------------------------------------------------------------------------------

    def proven(self, gone: Mask, bench: Bench) -> Mask:
        """Returns those of the dead nodes without which the network was seen to compute the same."""
        if not gone.any() or bench.same(self._without(gone, bench)):
            return gone
        # Not all together; perhaps those of some layers.
        groups = self.graph.structure.group_of_node
        good = np.zeros_like(gone)
        for group in np.unique(groups[gone]):
            part = gone & (groups == group)
            if bench.same(self._without(part, bench)):
                good |= part
        return good if bench.same(self._without(good, bench)) else np.zeros_like(gone)

    def dead(self) -> Mask:
        """Returns the nodes that can go, but for one of each group that would be empty."""
        gone = self.suspects & ~self.blocked
        groups = self.graph.structure.group_of_node
        left_of_group = np.bincount(groups[~gone], minlength=self.graph.structure.group_count)
        first_of_group = np.unique(groups, return_index=True)[1]
        is_first = np.arange(len(gone)) == first_of_group[groups]
        return gone & ~(is_first & (left_of_group[groups] == 0))

    def _without(self, gone: Mask, bench: Bench) -> dict[str, Tensor]:
        """Returns changed tensors: readers are deaf to these nodes, and the nodes say whatever comes to their mind.

        What they say must not matter then; if it does, something besides the readers' weights listens.
        """
        changes: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(1)
        for role, tensors in (("producer", self.parameters), ("consumer", self.matrices)):
            for name, dim, nodes in self._along(role, tensors):
                positions = np.flatnonzero((nodes >= 0) & gone[nodes])
                places = torch.from_numpy(positions).to(bench.device)
                value = changes.setdefault(name, bench.state[name].clone())
                rows = value.movedim(dim, 0)
                if role == "producer":
                    noise = torch.randn(rows[places].shape, generator=generator, dtype=torch.float64)
                    rows[places] = noise.to(value)
                else:
                    rows[places] = 0
        for name, shift in self.shifts(gone).items():
            changes[name] = changes.get(name, bench.state[name]) + shift.to(bench.state[name])
        return changes


def _depthwise_weights(model: nn.Module) -> set[str]:
    """Returns the names of the weights that filter each channel for itself."""
    found = set()
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.in_channels > 1:
            found |= {f"{path}.{name}" if path else name for name, _ in module.named_parameters()}
    return found


def _any_along(flags: Tensor, dim: int) -> Mask:
    return flags.movedim(dim, 0).flatten(1).any(1).cpu().numpy()


def _contribution(weight: Tensor, reader: Reader, chosen: Tensor) -> Tensor:
    """Returns what a reader's outputs get from chosen columns of its weight, given constant inputs."""
    columns, groups = weight.shape[1], getattr(reader.module, "groups", 1)
    # A constant input meets the sum of a kernel's taps.
    summed = weight.double().flatten(2).sum(2) if weight.dim() > 2 else weight.double()
    middle = (reader.low.to(summed) + reader.high.to(summed)) / 2
    values = middle.view(groups, 1, columns)
    values = torch.where(chosen.to(values.device), values, 0)
    return (summed.view(groups, -1, columns) * values).sum(2).flatten()
