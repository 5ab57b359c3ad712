"""What a choice of nodes removes, checked before anything is touched, and done in one go."""

from __future__ import annotations

import copy
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.cut.tensors import Cuts, Keep
from pruning.dry_run.attributes import adapt_attributes, first_message
from pruning.dry_run.dry_run import Failure
from pruning.dry_run.rescale import take_up
from pruning.dry_run.trials import culprits
from pruning.errors import UsageError
from pruning.modules.attributes import Attribute, module_integers, pack_recurrent, set_integers
from pruning.modules.modes import without_garbage_collection
from pruning.trace.components import Couplings, Dimension, Mask
from pruning.trace.traced import TracedNetwork

Companion = MutableMapping[str, Tensor] | nn.Module


@dataclass
class Line:
    """One layer that a plan touches.

    Args:
        function: the cut in pruning/functions.py that does the same by hand.
        path: of the module.
        module: its kind.
        dim: dimension of its weight.
        indices: what goes along it.
        parameters: how many parameters that removes, after the lines above.
        reason: what couples it to the rest.
    """

    function: str
    path: str
    module: str
    dim: int
    indices: list[int]
    parameters: int
    reason: str

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.indices[:12])) + (", ..." if len(self.indices) > 12 else "")
        return (f"{self.function} on {self.path} ({self.module}) dim {self.dim}, Indexs=[{shown}], "
                f"NumPruned={self.parameters}, {self.reason}")  # fmt: skip


def cut_function(module: nn.Module, dim: int) -> str:
    """Returns the name of the low-level cut for a dimension of a module's weight."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return "prune_batchnorm"
    conv = isinstance(module, nn.modules.conv._ConvNd)
    flipped = (conv and module.transposed) or isinstance(module, nn.Embedding)
    leaves = dim == (1 if flipped else 0)
    if isinstance(module, nn.Linear) or conv:
        kind = "conv" if conv else "linear"
        return f"prune_{kind}" if leaves else f"prune_related_{kind}"
    return "prune_out_channels" if leaves else "prune_in_channels"


class PruningPlan:
    """Slices to remove, rehearsed. `print(plan)` shows them, `plan.exec()` removes them.

    Args:
        traced: the network that the plan is for.
        couplings: say what ties a layer to the others.
        nodes: numbers of the nodes that go.
        removed: all labels that go with them.
        attributes: integers that modules must hold afterwards.
        numbers: operations whose numbers depend on the new widths.
        refused: (nodes, why) of asked nodes that have to stay.
        inexact: reasons why the remaining values change a little.
        asked: dimensions that the user named.
    """

    def __init__(
        self,
        traced: TracedNetwork,
        couplings: Couplings,
        nodes: np.ndarray,
        removed: Mask,
        *,
        attributes: list[Attribute],
        numbers: list[Failure],
        refused: list[tuple[np.ndarray, str]],
        inexact: list[str],
        asked: tuple[Dimension, ...] = (),
    ) -> None:
        self.traced, self._couplings = traced, couplings
        self.nodes, self.attributes, self.refused = nodes, attributes, refused
        self.asked = asked
        self._numbers, (self.scales, left) = numbers, take_up(traced.structure, numbers, traced.row_uses)
        depends = {f"a number depends on the width ({item.entry.name} in {item.entry.where or 'the network'})"
                   for item in left}  # fmt: skip
        self.inexact = sorted({*inexact, *depends})
        self._removed, self._generation = removed, traced.structure.generation
        self.executed = False
        self.keeps = self._kept_indices()
        self._before = {name: tuple(traced.tensors[name].shape) for name in self.keeps}
        self._lines: list[tuple[Line, Dimension, tuple[Dimension, ...]]] = []

    def _kept_indices(self) -> dict[str, Keep]:
        structure = self.traced.structure
        found: dict[str, Keep] = {}
        for dimension in structure.dimensions:
            labels = structure.labels_of(dimension)
            gone = self._removed[labels]
            if gone.any():
                found.setdefault(dimension.name, {})[dimension.dim] = torch.from_numpy(np.flatnonzero(~gone))
        return found

    # -- what it says ----------------------------------------------------------------------------------------------

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter or buffer name -> shape afterwards, for those that change."""
        found = {}
        for name, keep in self.keeps.items():
            shape = list(self._before[name])
            for dim, indices in keep.items():
                shape[dim] = len(indices)
            found[name] = tuple(shape)
        return found

    @property
    def parameters_removed(self) -> int:
        """How many parameters go; entries of buffers do not count."""
        return sum(line.parameters for line in self.lines())

    def lines(self) -> list[Line]:
        """Returns one line per layer and dimension, in the order in which modules are registered."""
        self._describe()
        for line, dimension, seeds in self._lines:
            if not line.reason:
                line.reason = "chosen" if seeds == (dimension,) != self.asked else self._couplings.why(dimension, seeds)
        return [line for line, _, _ in self._lines]

    def _describe(self) -> None:
        """Takes down what the plan does while the graph still knows; why, which takes longer, is for who asks."""
        if self._lines:
            return
        found: dict[tuple[str, str, int], tuple[Line, Dimension, tuple[Dimension, ...]]] = {}
        shapes = {name: list(shape) for name, shape in self._before.items()}
        for name, keep in self.keeps.items():
            path, _, own = name.rpartition(".")
            module = self.traced.owner(path)
            for dim, kept in sorted(keep.items()):
                shape = shapes[name]
                gone = shape[dim] - len(kept)
                volume = int(np.prod(shape)) // max(shape[dim], 1) * gone
                shape[dim] = len(kept)
                key = (self.traced.owner_path(path), cut_function(module, dim), dim)
                if key not in found:
                    indices = np.setdiff1d(np.arange(len(kept) + gone), kept.numpy()).tolist()
                    line = Line(key[1], key[0] or own, type(module).__name__, dim, indices, 0, "")
                    dimension = self.traced.known_dimension(name, dim)
                    found[key] = (line, dimension, self.asked or (self._seed_of(dimension),))
                if isinstance(self.traced.tensors[name], nn.Parameter):
                    found[key][0].parameters += volume
        self._lines = list(found.values())

    def _seed_of(self, dimension: Dimension) -> Dimension:
        """Returns the first dimension of the first removed node that a dimension takes part in."""
        structure = self.traced.structure
        labels = structure.labels_of(dimension)
        node = structure.node_of_label[labels[self._removed[labels]][0]]
        return structure.dimensions[structure.owners(structure.labels_of_node(node)[:1])[0]]

    def __str__(self) -> str:
        lines = ["-" * 32, *(f"[ {line} ]" for line in self.lines())]
        lines.append(f"{self.parameters_removed} parameters will be pruned ({len(self.nodes)} nodes)")
        lines += [f"not exact: {reason}" for reason in self.inexact]
        lines += [f"{len(nodes)} nodes stay: {why}" for nodes, why in self.refused]
        return "\n".join([*lines, "-" * 32])

    def preview(self) -> nn.Module:
        """Returns a copy of the network as it would be afterwards; the network itself stays as it is."""
        model, cuts = copy.deepcopy(self.traced.model), Cuts()
        integers = self._companion_module(cuts, model)
        self._describe()
        cuts.apply()
        set_integers(integers)
        pack_recurrent(model)
        return model

    # -- what it does ----------------------------------------------------------------------------------------------

    def exec(self, optimizers: Iterable[torch.optim.Optimizer] = (), cut_along: Iterable[Companion] = ()) -> None:
        """Removes the slices; parameters stay the same objects, so optimizers and hooks keep working.

        Args:
            optimizers: whose state is cut along (one optimizer or several).
            companions: dicts of tensors by parameter name (masks, rewind copies), cut in the dict, or modules of the
                same architecture (a running average), cut in place.

        Raises:
            UsageError: if the plan was executed, the network changed since, or something cannot be cut along; nothing
                is changed then.
        """
        if self.executed:
            raise UsageError("This plan was executed already; ask the graph for a new one.")
        if self._generation != self.traced.structure.generation:
            raise UsageError("The network was pruned after this plan was made; ask the graph for a new one.")
        self.traced.refresh()
        cuts, integers = self._cuts(optimizers, cut_along)
        self._describe()
        cuts.apply()
        set_integers(integers)
        pack_recurrent(self.traced.model)
        self.executed = True
        for changed in self._numbers:
            changed.entry.numbers = changed.numbers
        self.traced.commit(self._removed)

    def _cuts(self, optimizers: Any, cut_along: Any) -> tuple[Cuts, list[Attribute]]:
        cuts, integers = Cuts(), list(self.attributes)
        keeps = {id(self.traced.tensors[name]): keep for name, keep in self.keeps.items()}
        for name, keep in self.keeps.items():
            cuts.add_tensor(self.traced.tensors[name], keep, self._factors(name))
        for optimizer in [optimizers] if isinstance(optimizers, torch.optim.Optimizer) else optimizers:
            cuts.add_optimizer(optimizer, keeps)
        single = isinstance(cut_along, (nn.Module, MutableMapping))
        for companion in [cut_along] if single else cut_along:
            if isinstance(companion, nn.Module):
                integers += self._companion_module(cuts, companion)
            else:
                cuts.add_companion(companion, self.traced.named(), keeps)
        return cuts, integers

    def _factors(self, name: str) -> Tensor | None:
        """Returns what is left of a tensor has to be multiplied with, because a scale followed the width."""
        result = None
        for dim in self.keeps[name] if self.scales else ():
            dimension = self.traced.known_dimension(name, dim)
            labels = self.traced.structure.labels_of(dimension)
            labels = labels[~self._removed[labels]]
            for scale in self.scales:
                hit = np.isin(labels, scale.labels)
                if hit.any():
                    shape = [-1 if place == dim else 1 for place in range(self.traced.tensors[name].dim())]
                    factor = torch.from_numpy(np.where(hit, scale.factor, 1.0)).view(shape)
                    result = factor if result is None else result * factor
        return result

    def _companion_module(self, cuts: Cuts, companion: nn.Module) -> list[Attribute]:
        own = {**dict(companion.named_parameters()), **dict(companion.named_buffers())}
        for name, keep in self.keeps.items():
            if name not in own or own[name].shape != self.traced.tensors[name].shape:
                raise UsageError(f"The companion {type(companion).__name__} has no {name} of the network's shape.")
            cuts.add_tensor(own[name], keep, self._factors(name))
        modules, paths = (
            dict(companion.named_modules()),
            {module: path for path, module in self.traced.model.named_modules()},
        )
        shapes = {id(own[name]): shape for name, shape in self.shapes.items()}
        copied = [
            (modules[paths[module]], name, value) for module, name, value in self.attributes if paths[module] in modules
        ]
        return module_integers(companion, shapes) + copied


@without_garbage_collection()
def make_plan(
    traced: TracedNetwork, couplings: Couplings, nodes: np.ndarray, asked: tuple[Dimension, ...] = ()
) -> PruningPlan:
    """Rehearses a choice of nodes; those that the network's code does not let go stay, and the plan says why.

    Raises:
        UsageError: if a layer would be emptied, or none of the nodes can go.
    """
    traced.refresh()
    structure, refused = traced.structure, []
    while True:
        removed = structure.removed_labels(nodes)
        empty = structure.emptied(removed)
        if empty:
            raise UsageError(f"Removing these nodes would leave nothing of {empty[0].name} (dimension {empty[0].dim}).")
        result = adapt_attributes(traced, removed)
        if result.passed:
            break
        operation, where, message = first_message(result.report)
        why = f"{operation} in {where or 'the network'}: {message}"
        stay = culprits(traced, nodes, result.report)
        if len(stay) == len(nodes):
            raise UsageError(f"These nodes cannot be removed; {why}.")
        refused.append((stay, why))
        nodes = np.setdiff1d(nodes, stay)
    inexact = sorted(
        {reason for reason in (structure.inexact_reason(node) for node in structure.one_per_group(nodes)) if reason}
    )
    return PruningPlan(
        traced,
        couplings,
        nodes,
        removed,
        attributes=result.attributes,
        numbers=result.report.numbers,
        refused=refused,
        inexact=inexact,
        asked=asked,
    )
