"""Turns masks into smaller tensors: removes the nodes that a network of masked weights does not need.

    network.prune(SNIP(), batches, sparsity=0.98)
    print(shrink_dead(network))

A node may go if nothing that reads it reaches the output, or if nothing of the input reaches it: it then emits a
constant, and what its readers make of that constant goes into their biases, where it is the same at every position.
Connections (pruning/paths.py) propose; every choice is tried out on random inputs before anything is touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.cut.plan import Companion
from pruning.dead.reach import Paths, UnknownOperation
from pruning.dead.verify import Bench, Reader
from pruning.errors import UsageError
from pruning.graph.graph import DependencyGraph
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
        companions: what else is cut along, as in `PruningPlan.exec`; no constants are folded into those.

    Raises:
        UsageError: without example inputs, or if something cannot be cut along; the step that failed changes nothing.
    """
    if not isinstance(getattr(network, "model", None), nn.Module):
        raise UsageError(f"shrink_dead takes a PrunableNetwork, not a {type(network).__name__}.")
    optimizers, cut_along = _listed(optimizers), [network.masks.keep, *_listed(cut_along)]
    report, before = ShrinkReport(), _parameters(network)
    network.enforce()
    while gone := _remove_dead(network, report, optimizers, cut_along):
        network.masks.refresh()
        report.nodes += gone
    report.parameters = before - _parameters(network)
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
    search = _Search(graph, network.example_inputs)
    if not search.suspects.any():
        return 0
    bench = Bench(network.model, network.example_inputs)
    search.look_at(bench.readers)
    report.constants = int((search.suspects & search.blocked).sum())
    dead = search.dead()
    gone = search.proven(dead, bench)
    report.reason = "on random inputs they made a difference" if (dead & ~gone).any() else ""
    if not gone.any():
        return 0
    try:
        plan = graph.plan(gone)
    except UsageError as error:  # code that does not go along; the network works on as it is
        report.reason = str(error)
        return 0
    report.reason = "; ".join(why for _, why in plan.refused) or report.reason
    shifts = search.shifts(np.isin(np.arange(len(gone)), plan.nodes))
    with _added(graph.named(), shifts):
        plan.exec(optimizers, cut_along)
    return len(plan.nodes)


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
        example_inputs: what the network is called with.
    """

    def __init__(self, graph: DependencyGraph, example_inputs: Any) -> None:
        self.graph = graph
        self.parameters = {name: t.detach() for name, t in graph.tensors.items() if isinstance(t, nn.Parameter)}
        self.matrices = {name: tensor for name, tensor in self.parameters.items() if tensor.dim() > 1}
        self.settled: dict[str, Tensor] = {}
        self.readers: dict[str, list[Reader]] = {}
        self.heard = nonzero = {name: tensor != 0 for name, tensor in self.matrices.items()}
        is_read, read = self._touched("consumer", nonzero)
        try:
            paths = Paths(graph.model, example_inputs, nonzero)
            self.heard = paths.heard()
            constant = ~self._touched("consumer", paths.effective())[1]
        except UnknownOperation:  # what the nodes' own weights say must do
            is_made, made = self._touched("producer", nonzero)
            constant = is_made & ~made
        self.constant = constant & is_read
        self.suspects: Mask = is_read & ~graph.inexact & (constant | ~self._touched("consumer", self.heard)[1])
        self.blocked: Mask = np.zeros(len(constant), dtype=bool)

    def _along(self, role: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, int, np.ndarray]]:
        """Yields (name, dimension, node per index) of all dimensions that play a role for any node."""
        for name, tensor in tensors.items():
            for dim in range(tensor.dim()):
                nodes = self.graph.nodes_along(name, dim, role)
                if (nodes >= 0).any():
                    yield name, dim, nodes

    def _touched(self, role: str, flags: Mapping[str, Tensor]) -> tuple[Mask, Mask]:
        """Returns per node: does it have slices of this role, and is any flag in them set."""
        count = len(self.graph.nodes)
        there, touched = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
        for name, dim, nodes in self._along(role, flags):
            there[nodes[nodes >= 0]] = True
            touched[nodes[(nodes >= 0) & _any_along(flags[name], dim)]] = True
        return there, touched

    # -- readers ---------------------------------------------------------------------------------------------------

    def look_at(self, readers: list[Reader]) -> None:
        """Finds the nodes that a reader cannot do without, given what it was seen to be given."""
        for reader in readers:
            name = self.graph.traced.names.get(id(reader.module._parameters["weight"]), "")
            self.readers.setdefault(name, []).append(reader)
        for name, dim, nodes in self._along("consumer", self.matrices):
            silent = ~_any_along(self.heard[name], dim)
            fits = silent | (self._settled(name, dim) & self.constant[nodes])
            self.blocked[nodes[(nodes >= 0) & ~fits]] = True

    def _settled(self, name: str, dim: int) -> Mask:
        """Returns per column of a weight: its input is zero, or a constant that the reader can take over."""
        weight = self.matrices[name]
        settled = np.full(weight.shape[dim], dim == 1 and name in self.readers)
        for reader in self.readers.get(name, ()) if dim == 1 else ():
            by_group = (-1, weight.shape[1])
            steady, zero = reader.steady(), (reader.low == 0) & (reader.high == 0)
            outer = reader.padded_taps()
            fits = steady.view(by_group).all(0) & (reader.target is not None)
            if outer is not None:  # zeros of the padding make the constant another one at the border
                fits &= ~(weight[:, :, outer.to(weight.device)] != 0).any(2).any(0)
            settled &= (zero.view(by_group).all(0) | fits).cpu().numpy()
        return settled

    def shifts(self, gone: Mask) -> dict[str, Tensor]:
        """Returns what readers must add to their biases (or take off their norms' means) instead of these nodes."""
        found: dict[str, Tensor] = {}
        for name, dim, nodes in self._along("consumer", self.matrices):
            chosen = (nodes >= 0) & gone[nodes] & _any_along(self.heard[name], dim)
            for reader in self.readers.get(name, ()) if dim == 1 and chosen.any() else ():
                change = _contribution(self.matrices[name], reader, torch.from_numpy(chosen))
                if reader.target is not None and change.any():
                    target, sign = reader.target
                    target = self.graph.traced.names[id(self.graph.named()[target])]
                    found[target] = found.get(target, 0) + sign * change
        return found

    # -- proof -----------------------------------------------------------------------------------------------------

    def proven(self, gone: Mask, bench: Bench) -> Mask:
        """Returns those of the dead nodes without which the network was seen to compute the same."""
        if not gone.any() or bench.same(self._without(gone, bench)):
            return gone
        groups = self.graph.structure.group_of_node
        parts = [gone & (groups == group) for group in np.unique(groups[gone])]
        parts = [part for part in parts if bench.same(self._without(part, bench))]
        good = np.logical_or.reduce([np.zeros_like(gone), *parts])
        return good if bench.same(self._without(good, bench)) else np.zeros_like(gone)

    def dead(self) -> Mask:
        """Returns the nodes that can go, but for one of each group that would be empty."""
        gone = self.suspects & ~self.blocked
        groups = self.graph.structure.group_of_node
        nodes, left = np.arange(len(gone)), np.bincount(groups[~gone], minlength=self.graph.structure.group_count)
        first = np.unique(groups, return_index=True)[1]
        return gone & ~((nodes == first[groups]) & (left[groups] == 0))

    def _without(self, gone: Mask, bench: Bench) -> dict[str, Tensor]:
        """Returns changed tensors: readers are deaf to these nodes, and the nodes say whatever comes to their mind.

        What they say must not matter then; if it does, something besides the readers' weights listens.
        """
        changes: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(1)
        for role, tensors in (("producer", self.parameters), ("consumer", self.matrices)):
            for name, dim, nodes in self._along(role, tensors):
                places = torch.from_numpy(np.flatnonzero((nodes >= 0) & gone[nodes])).to(bench.device)
                value = changes.setdefault(name, bench.state[name].clone())
                rows = value.movedim(dim, 0)
                noise = torch.randn(rows[places].shape, generator=generator, dtype=torch.float64)
                rows[places] = noise.to(value) if role == "producer" else torch.zeros_like(rows[places])
        for name, shift in self.shifts(gone).items():
            changes[name] = changes.get(name, bench.state[name]) + shift.to(bench.state[name])
        return changes


def _any_along(flags: Tensor, dim: int) -> Mask:
    return flags.movedim(dim, 0).flatten(1).any(1).cpu().numpy()


def _contribution(weight: Tensor, reader: Reader, chosen: Tensor) -> Tensor:
    """Returns what a reader's outputs get from chosen columns of its weight, given constant inputs."""
    columns, groups = weight.shape[1], getattr(reader.module, "groups", 1)
    per_tap = weight.double().flatten(2).sum(2) if weight.dim() > 2 else weight.double()
    low, high = reader.low.to(per_tap), reader.high.to(per_tap)
    values = ((low + high) / 2).view(groups, 1, columns)
    values = torch.where(chosen.to(values.device), values, 0)
    return (per_tap.view(groups, -1, columns) * values).sum(2).flatten()
