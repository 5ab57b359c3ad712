"""What a choice of nodes removes, checked before anything is touched, and done in one go."""

from __future__ import annotations

import copy
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pruning.cut.tensors import Cuts, Keep
from pruning.dry_run.attributes import adapt_attributes, first_message
from pruning.dry_run.dry_run import Failure
from pruning.dry_run.rescale import take_up
from pruning.errors import UsageError
from pruning.modules.attributes import Attribute, module_integers, pack_recurrent
from pruning.modules.changed import note_change, note_cut, set_attributes
from pruning.modules.kept import holders
from pruning.modules.kinds import channel_dims
from pruning.modules.modes import without_garbage_collection
from pruning.modules.tables import plain_tables
from pruning.trace.components import Couplings, Dimension, Mask
from pruning.trace.traced import TracedNetwork

Companion = MutableMapping[str, Tensor] | nn.Module

_MOST_SHOWN = 12  # indices in a line of text

RENAMED = "The keyword companions= is called cut_along= now."


@dataclass
class Line:
    """One layer that a plan touches.

    Args:
        function: the cut in pruning/cut/by_hand.py that does the same by hand.
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
        shown = [str(index) for index in self.indices[:_MOST_SHOWN]]
        if len(self.indices) > _MOST_SHOWN:
            shown.append("...")
        what = f"{self.function} on {self.path} ({self.module}) dim {self.dim}"
        return f"{what}, Indexs=[{', '.join(shown)}], NumPruned={self.parameters}, {self.reason}"


class _Touched(NamedTuple):
    """A line, the dimension that it is about, and those whose removal takes it along."""

    line: Line
    dimension: Dimension
    seeds: tuple[Dimension, ...]


def cut_function(module: nn.Module, dim: int) -> str:
    """Returns the name of the low-level cut for a dimension of a module's weight."""
    output_dim, _ = channel_dims(module)
    takes_outputs = dim == output_dim
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return "prune_batchnorm"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "prune_conv" if takes_outputs else "prune_related_conv"
    if isinstance(module, nn.Linear):
        return "prune_linear" if takes_outputs else "prune_related_linear"
    return "prune_out_channels" if takes_outputs else "prune_in_channels"


class PruningPlan:
    """Slices to remove, proven by a dry run. `print(plan)` shows them, `plan.exec()` removes them.

    Args:
        traced: the network that the plan is for.
        couplings: say what ties a layer to the others.
        nodes: numbers of the nodes that go.
        removed: all labels that go with them.
        attributes: integers that modules must hold afterwards.
        numbers: operations whose numbers depend on the new widths.
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
        inexact: Iterable[str],
        asked: tuple[Dimension, ...] = (),
    ) -> None:
        self.traced = traced
        self.nodes = nodes
        self.attributes = attributes
        self.asked = asked
        self.executed = False
        self._couplings = couplings
        self._removed = removed
        self._generation = traced.structure.generation
        self._numbers = numbers
        # What no weight can take up changes the values that remain.
        self.scales, left = take_up(traced.structure, numbers, traced.row_uses)
        reasons = set(inexact)
        for number in left:
            where = number.entry.where or "the network"
            reasons.add(f"{number.why} ({number.entry.name} in {where})")
        self.inexact = sorted(reasons)
        self.keeps = self._kept_indices()
        self._scaled_dims = self._find_scaled_dims()
        self._before = {name: tuple(traced.tensors[name].shape) for name in self.keeps}
        self._touched: list[_Touched] = []

    def _kept_indices(self) -> dict[str, Keep]:
        structure = self.traced.structure
        found: dict[str, Keep] = {}
        for dimension in structure.dimensions:
            gone = self._removed[structure.labels_of(dimension)]
            if gone.any():
                kept = torch.from_numpy(np.flatnonzero(~gone))
                found.setdefault(dimension.name, {})[dimension.dim] = kept
        return found

    def _find_scaled_dims(self) -> dict[str, set[int]]:
        """Returns the dimensions along which a factor goes into rows; not all of their tensors shrink."""
        structure = self.traced.structure
        found: dict[str, set[int]] = {}
        for scale in self.scales:
            for owner in np.unique(structure.owners(scale.labels)):
                dimension = structure.dimensions[owner]
                found.setdefault(dimension.name, set()).add(dimension.dim)
        return found

    @property
    def _changed(self) -> list[str]:
        """Names of all tensors that are cut or scaled."""
        return list(dict.fromkeys([*self.keeps, *self._scaled_dims]))

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
    def refused(self) -> list[tuple[np.ndarray, str]]:
        """Nodes that were asked for and stay: none today, a plan is carried out whole or refused when it is made."""
        return []

    @property
    def parameters_removed(self) -> int:
        """How many parameters go; entries of buffers do not count."""
        return sum(line.parameters for line in self.lines())

    def lines(self) -> list[Line]:
        """Returns one line per layer and dimension, in the order in which modules are registered."""
        self._describe()
        for line, dimension, seeds in self._touched:
            if line.reason:
                continue
            if dimension in self.asked:
                line.reason = "asked for"
            elif seeds == (dimension,):
                line.reason = "chosen"
            else:
                line.reason = self._couplings.why(dimension, seeds)
        return [touched.line for touched in self._touched]

    def _describe(self) -> None:
        """Takes down what the plan does while the graph still knows; why, which takes longer, is for who asks."""
        if self._touched:
            return
        found: dict[tuple[str, str, int], _Touched] = {}
        for name, keep in self.keeps.items():
            path, _, own_name = name.rpartition(".")
            module, owner_path = self.traced.owner(path), self.traced.owner_path(path)
            shape = list(self._before[name])
            for dim, kept in sorted(keep.items()):
                key = (owner_path, cut_function(module, dim), dim)
                if key not in found:
                    found[key] = self._touch(name, dim, key[1], owner_path or own_name, type(module).__name__)
                # Where two dimensions shrink, what lies in both is counted with the first.
                size_before = int(np.prod(shape))
                shape[dim] = len(kept)
                if isinstance(self.traced.tensors[name], nn.Parameter):
                    found[key].line.parameters += size_before - int(np.prod(shape))
        self._touched = list(found.values())

    def _touch(self, name: str, dim: int, function: str, path: str, kind: str) -> _Touched:
        goes = np.ones(self._before[name][dim], dtype=bool)
        goes[self.keeps[name][dim].numpy()] = False
        gone = np.flatnonzero(goes)
        line = Line(function, path, kind, dim, gone.tolist(), parameters=0, reason="")
        dimension = self.traced.known_dimension(name, dim)
        return _Touched(line, dimension, self.asked or (self._seed_of(dimension),))

    def _seed_of(self, dimension: Dimension) -> Dimension:
        """Returns the first dimension of the first removed node that a dimension takes part in."""
        structure = self.traced.structure
        labels = structure.labels_of(dimension)
        removed = labels[self._removed[labels]]
        node = structure.node_of_label[removed[0]]
        first_label = structure.labels_of_node(node)[:1]
        return structure.dimensions[structure.owners(first_label)[0]]

    def __str__(self) -> str:
        rule = "-" * 32
        lines = [f"[ {line} ]" for line in self.lines()]
        lines.append(f"{self.parameters_removed} parameters will be pruned ({len(self.nodes)} nodes)")
        lines += [f"not exact: {reason}" for reason in self.inexact]
        return "\n".join([rule, *lines, rule])

    def preview(self) -> nn.Module:
        """Returns a copy of the network as it would be afterwards; the network itself stays as it is."""
        model, cuts = copy.deepcopy(self.traced.model), Cuts()
        integers = self._cut_module_along(cuts, model)
        self._describe()
        cuts.apply()
        self._finish(model, integers)
        return model

    # -- what it does ----------------------------------------------------------------------------------------------

    def exec(
        self,
        optimizers: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] = (),
        cut_along: Companion | Iterable[Companion] = (),
        *,
        companions: object = None,
    ) -> None:
        """Removes the slices; parameters stay the same objects, so optimizers and hooks keep working.

        Args:
            optimizers: whose state is cut along (one optimizer or several).
            cut_along: dicts of tensors by parameter name (masks, rewind copies), cut in the dict, or modules of the
                same architecture (a running average), cut in place.
            companions: the former name of `cut_along`, refused with a line that says so.

        Raises:
            UsageError: if the plan was executed, the network changed since, or something cannot be cut along; nothing
                is changed then.
        """
        if companions is not None:
            raise UsageError(RENAMED)
        if self.executed:
            raise UsageError("This plan was executed already; ask the graph for a new one.")
        if self._generation != self.traced.structure.generation:
            raise UsageError("The network was pruned after this plan was made; ask the graph for a new one.")
        self.traced.refresh()
        cuts, networks = self._cuts(_listed(optimizers), _listed(cut_along))
        self._describe()
        cuts.apply()
        for model, integers in networks:
            self._finish(model, integers)
        self.executed = True
        # Later plans compare with the numbers that the smaller network uses.
        for changed in self._numbers:
            if changed.tables is None:
                changed.entry.numbers = changed.numbers
            else:
                changed.entry.tables = changed.tables
        self.traced.commit(self._removed)

    def _cuts(
        self, optimizers: list[torch.optim.Optimizer], cut_along: list[Companion]
    ) -> tuple[Cuts, list[tuple[nn.Module, list[Attribute]]]]:
        """Makes all new tensors, and lists the integers to set in each network, before anything is put in place."""
        cuts, networks = Cuts(), [(self.traced.model, list(self.attributes))]
        keeps = {}
        for name in self._changed:
            tensor = self.traced.tensors[name]
            keeps[id(tensor)] = self.keeps.get(name, {})
            self._add(cuts, self.traced.model, name, tensor)
        for optimizer in optimizers:
            cuts.add_optimizer(optimizer, keeps)
        for companion in cut_along:
            if isinstance(companion, nn.Module):
                networks.append((companion, self._cut_module_along(cuts, companion)))
            else:
                cuts.add_companion(companion, self.traced.named(), keeps)
        return cuts, networks

    def _add(self, cuts: Cuts, model: nn.Module, name: str, tensor: Tensor) -> None:
        """Makes what is left of a tensor of the network, or of one that runs along."""
        keep, factors = self.keeps.get(name, {}), self._factors(name)
        if name in self.traced.tables:
            cuts.add_table(model, tensor, keep, factors)
        else:
            cuts.add_tensor(tensor, keep, factors)

    def _finish(self, model: nn.Module, attributes: list[Attribute]) -> None:
        """Sets the integers of a network whose tensors were cut, and notes there what a state dict leaves out."""
        model = self._counterpart(model)
        note_cut(model)
        set_attributes(model, attributes)
        for name in self._changed:
            path, _, own_name = name.rpartition(".")
            is_saved = own_name not in model.get_submodule(path)._non_persistent_buffers_set
            if name in self.traced.tables or not is_saved:
                note_change(model, path, own_name.partition("[")[0])
        pack_recurrent(model)

    def _counterpart(self, companion: nn.Module) -> nn.Module:
        """Returns the module of the network's own class: a companion, or what it wraps."""
        inside = getattr(companion, "module", None)
        if isinstance(inside, nn.Module) and type(inside) is type(self.traced.model):
            return inside  # an AveragedModel, or what is run in parallel
        return companion

    def _factors(self, name: str) -> Tensor | None:
        """Returns what is left of a tensor has to be multiplied with, because a scale followed the width."""
        result = None
        for dim in sorted(self._scaled_dims.get(name, ())):
            labels = self.traced.structure.labels_of(self.traced.known_dimension(name, dim))
            labels = labels[~self._removed[labels]]
            shape = [1] * self.traced.tensors[name].dim()
            shape[dim] = -1
            for scale in self.scales:
                hit = np.isin(labels, scale.labels)
                if hit.any():
                    factor = torch.from_numpy(np.where(hit, scale.factor, 1.0)).view(shape)
                    result = factor if result is None else result * factor
        return result

    def _cut_module_along(self, cuts: Cuts, companion: nn.Module) -> list[Attribute]:
        """Cuts a module of the same architecture; returns the integers that it must hold afterwards."""
        companion = self._counterpart(companion)
        tensors = {**dict(companion.named_parameters()), **dict(companion.named_buffers()), **plain_tables(companion)}
        shapes = {}
        for name in self._changed:
            tensor = tensors.get(name)
            if tensor is None or tensor.shape != self.traced.tensors[name].shape:
                raise UsageError(f"The companion {type(companion).__name__} has no {name} of the network's shape.")
            self._add(cuts, companion, name, tensor)
            if name in self.keeps:
                shapes[id(tensor)] = self.shapes[name]
        integers = module_integers(companion, shapes, by_heads=self.traced.by_heads)
        paths = {id(holder): path for path, holder in holders(self.traced.model).items()}
        counterparts = holders(companion)
        for holder, name, value in self.attributes:
            counterpart = counterparts.get(paths[id(holder)])
            if counterpart is not None:
                integers.append((counterpart, name, value))
        return integers


def _listed(values: Any) -> list[Any]:
    """Returns what was given, one thing or several, as a list."""
    single = isinstance(values, (torch.optim.Optimizer, nn.Module, MutableMapping))
    return [values] if single else list(values)


@without_garbage_collection()
def make_plan(
    traced: TracedNetwork, couplings: Couplings, nodes: np.ndarray, asked: tuple[Dimension, ...] = ()
) -> PruningPlan:
    """Proves a choice of nodes by a dry run.

    Raises:
        UsageError: if a layer would be emptied, or the network's code does not run with the widths that are left.
    """
    traced.refresh()
    structure = traced.structure
    removed = structure.removed_labels(nodes)
    empty = structure.emptied(removed)
    if empty:
        raise UsageError(f"Removing these nodes would leave nothing of {empty[0].name} (dimension {empty[0].dim}).")
    misaligned = structure.misaligned(removed)
    if misaligned:
        raise UsageError(f"These nodes cannot be removed: {misaligned}.")
    result = adapt_attributes(traced, removed)
    if not result.passed:
        operation, where, message = first_message(result.report)
        raise UsageError(f"These nodes cannot be removed: {message} ({operation} in {where or 'the network'}).")
    # One node stands for its group: its neighbours meet the same operations.
    reasons = {structure.inexact_reason(node) for node in structure.one_per_group(nodes)}
    return PruningPlan(
        traced,
        couplings,
        nodes,
        removed,
        attributes=result.attributes,
        numbers=result.report.numbers,
        inexact=reasons - {""},
        asked=asked,
    )
