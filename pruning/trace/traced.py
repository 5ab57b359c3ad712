"""Watches a network run, once as it is and as often as asked with shrunken shapes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.errors import UsageError
from pruning.modules.attention import ByHeads, by_heads
from pruning.modules.attributes import Attribute
from pruning.modules.calls import RUN_ERRORS, mapped, split_inputs
from pruning.modules.snapshot import Snapshot
from pruning.modules.tables import plain_tables
from pruning.modules.weights import named_tensors
from pruning.trace.components import Dimension, Mask, Structure
from pruning.trace.heads import HeadSearch, head_axes
from pruning.trace.idle import leave_out_idle
from pruning.trace.isolate import blank, run
from pruning.trace.labels import Axes, Axis, Entry, Labels, Split, Uses
from pruning.trace.outputs import ChooseOutputs, OutputsFailed, check_choice, sorted_out
from pruning.trace.rules import RULES
from pruning.trace.schema import schema
from pruning.trace.sizes import Equation, Sizes
from pruning.trace.trace import Trace


def first_line(error: BaseException) -> str:
    """Returns what an error says, in one line."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


class TracedNetwork:
    """A network, its labelled tensors, and the operations it was seen to run.

    Args:
        model: the network.
        example_inputs: as for `DependencyGraph`.
        choose_outputs: the same.
        by_heads: attention is pruned by whole heads instead of the width of each.
        snapshot: what the network was, for several runs in a row; without it each takes one for itself.

    Raises:
        UsageError: if the network holds nothing to prune or does not run on these inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        choose_outputs: ChooseOutputs | None = None,
        *,
        by_heads: bool = False,
        snapshot: Snapshot | None = None,
    ) -> None:
        self.model = model
        self.snapshot = snapshot
        check_choice(choose_outputs)
        self.choose_outputs = choose_outputs
        self.by_heads = by_heads
        self.made_first: list[str] = []  # modules and parameters that a first call makes
        self.caches: list[str] = []  # what is handed back and does not count as output
        tables = plain_tables(model)
        self.tables = frozenset(tables)  # names of tensors that are plain attributes
        self.tensors = {**named_tensors(model), **tables}
        self.names = {id(tensor): name for name, tensor in self.tensors.items()}
        # The network may move or change its type later; the example inputs do not, so dry runs stay where it was.
        self._was = {name: (tensor.dtype, tensor.device) for name, tensor in self.tensors.items()}
        self.notes: list[str] = []
        self.real = False  # whether the network needs data to run
        self._given = split_inputs(example_inputs)
        self._inputs = {False: self._given, True: self._given}  # by mode: is it training?
        self._sizes: dict[bool, Sizes] = {}
        self._depends_on_mode = True

        dimensions = self._dimensions()
        if not dimensions:
            raise UsageError(f"{type(model).__name__} has no parameters to prune.")
        self._by_name: dict[str, list[Dimension]] = {}
        for dimension in dimensions:
            self._by_name.setdefault(dimension.name, []).append(dimension)
        slice_labels = sum(dimension.size for dimension in dimensions)

        traces = self._traces(slice_labels)
        total = max(trace.next_label for trace in traces.values())
        self.structure = Structure(dimensions, total)
        self.runs: dict[bool, list[Entry]] = {}
        self.row_uses: dict[bool, Uses] = {}
        self.head_labels: Labels = np.empty(0, np.int64)  # of dimensions with one index per head
        self.heads_made: list[tuple[str, Labels]] = []  # such dimensions, and the path of the module that made them
        self.splits: list[Split] = []  # where more than one of several sizes may change
        for training, trace in traces.items():
            self._collect(trace)
            self.head_labels = np.union1d(self.head_labels, np.array(sorted(trace.head_labels), np.int64))
            self.heads_made += trace.heads_made
            self.runs[training] = trace.entries
            self.row_uses[training] = trace.row_uses
            self.splits += _open_splits(trace)
        self.equations: list[Equation] = []  # what the code says of sizes, in all modes
        for training in traces:
            self.equations += self._sizes[training].equations
        # Integers that forward works out once: whoever cuts takes them away again.
        self.derived = [attribute for training in traces for attribute in self._sizes[training].derived]
        if self.made_first:
            made = ", ".join(self.made_first)
            self.notes.append(f"makes {made} at its first call, which is not seen: call it once, then look again")
        if self.caches:
            names = ", ".join(dict.fromkeys(self.caches))
            self.notes.append(f"is a cache that is handed back, and may shrink: {names}")
        self.handles_sizes = any(self._sizes[training].handled for training in traces)
        self.grouped = self._grouped_convolutions()
        if len(self.runs) == 2 and _do_alike(self.runs[False], self.runs[True]):
            del self.runs[True], self.row_uses[True]  # one dry run will do
            self.equations = self._sizes[False].equations

    def _dimensions(self) -> list[Dimension]:
        """Lists the dimensions that could shrink: those of more than one index that are no kernel's sides."""
        kernels = set()
        for module in self.model.modules():
            if isinstance(module, nn.modules.conv._ConvNd):
                kernels |= {id(tensor) for tensor in module.parameters(recurse=False)}
        found = []
        start = 0
        for name, tensor in self.tensors.items():
            sizes = tensor.shape[:2] if id(tensor) in kernels else tensor.shape
            trained = isinstance(tensor, nn.Parameter)
            for dim, size in enumerate(sizes):
                if size > 1:  # the last index of a dimension never goes
                    found.append(Dimension(name, dim, start, size, trained))
                    start += size
        return found

    def _grouped_convolutions(self) -> set[nn.Module]:
        """Returns the convolutions with groups of more than one channel, which each lose equally many."""
        modules = dict(self.model.named_modules())
        found = set()
        for entries in self.runs.values():
            for entry in entries:
                # Their rule makes one choice: is each channel alone in its group?
                if entry.name == "aten.convolution" and entry.choices == [False]:
                    found.add(modules[entry.where])
        return found

    # -- runs ------------------------------------------------------------------------------------------------------

    def _traces(self, first_label: int) -> dict[bool, Trace]:
        """Runs the network in both modes, without data if it can."""
        traces, errors = self._attempt(first_label)
        if not traces:  # code that looks at values (`.item()`), or an operation that torch runs on data alone
            self.notes.append(f"needs data to run: {first_line(errors[False])}")
            self.real = True
            traces, errors = self._attempt(first_label)
        if isinstance(errors.get(False), OutputsFailed):
            raise errors[False]
        if not traces:
            error = errors[False]
            what = f"{type(error).__name__}: {first_line(error)}"
            network = type(self.model).__name__
            raise UsageError(f"{network} does not run on these example inputs: {what}") from error
        for training, error in errors.items():
            mode = "training" if training else "eval"
            self.notes.append(f"does not run in {mode} mode on these inputs: {first_line(error)}")
        return traces

    def _attempt(self, first_label: int) -> tuple[dict[bool, Trace], dict[bool, BaseException]]:
        """Returns the traces of the modes that run, and the errors of those that do not."""
        traces: dict[bool, Trace] = {}
        errors: dict[bool, BaseException] = {}
        everything = np.ones(first_label, dtype=bool)
        for training in (False, True):
            if training and traces and not self._depends_on_mode:
                break  # it would do the same again
            for inputs in self._ways_to_call(training):
                trace = Trace(RULES, first_label, real=self.real)
                self._inputs[training] = inputs
                self._sizes[training] = Sizes(trace)
                try:
                    if self.by_heads:
                        search = HeadSearch(RULES, first_label, real=self.real)
                        self.run(search, everything, everything, training, [])
                        trace.head_axes = head_axes(search)
                    self.run(trace, everything, everything, training, [], self._sizes[training])
                    leave_out_idle(trace, self._sizes[training])
                except RUN_ERRORS as error:
                    errors.setdefault(training, error)
                    continue
                errors.pop(training, None)
                traces[training] = trace
                first_label = trace.next_label  # labels made in one mode mean nothing in the other
                break
        return traces, errors

    def _ways_to_call(self, training: bool) -> list[Any]:
        """Returns the inputs; for training a batch of two as well, since batch norm cannot train on one."""
        if not training:
            return [self._given]

        def twice(tensor: Tensor) -> Tensor:
            is_batch_of_one = tensor.dim() > 0 and tensor.shape[0] == 1
            return torch.cat([tensor, tensor]) if is_batch_of_one else tensor

        return [self._given, mapped(self._given, twice)]

    def run(
        self,
        trace: Trace,
        there: Mask,
        stay: Mask,
        training: bool,
        attributes: list[Attribute],
        sizes: Sizes | None = None,
    ) -> None:
        """Runs the model with what stays of its tensors, labelled, and pins what it returns.

        Args:
            trace: what watches.
            there: which labels the tensors have now.
            stay: which of them they have during the run.
            training: the mode to run in.
            attributes: (holder, name, value) to hold during the run.
            sizes: if given, reads what every size in the code depends on.
        """
        stand_ins = {}
        left = there & stay
        for name, tensor in self.tensors.items():
            axes = self._axes(name, left)
            made = self._stand_in(name, axes, there, stay)
            stand_ins[id(tensor)] = made
            trace.start(made, axes)

        def protected(returned: Any) -> list[Tensor]:
            found = sorted_out(returned, self.choose_outputs, trace.read_by_attention.__contains__)
            self.caches = found.caches or self.caches
            return found.protected

        with by_heads(self.model) if self.by_heads else nullcontext():
            outcome = run(
                self.model,
                self._inputs[training],
                trace,
                snapshot=self.snapshot,
                stand_ins=stand_ins,
                training=training,
                attributes=attributes,
                protected=protected,
                sizes=sizes,
            )
        for before, after in outcome.made_anew:  # the next run finds what this one left, so both shrink alike
            for one, other in zip(trace.axes(before), trace.axes(after), strict=True):
                trace.tie(one, other)
        self.made_first = outcome.made_first
        kept = [*outcome.outputs, *outcome.left_behind, *(after for _, after in outcome.made_anew)]
        trace.returned.update(trace.makers(kept))
        _pin_results(trace, outcome.outputs, "is the network's output")
        # A normalised weight is made anew each time.
        held = [tensor for tensor in outcome.left_behind if not trace.is_weight(tensor)]
        _pin_results(trace, held, "is kept in a module's attribute")
        self._depends_on_mode = any(map(_does_otherwise_in_training, outcome.mode_readers))

    def _axes(self, name: str, stay: Mask) -> Axes:
        """Returns the axes of a tensor of which some labels stay."""
        axes: list[Axis | None] = [None] * self.tensors[name].dim()
        for dimension in self._by_name.get(name, ()):
            labels = np.arange(dimension.start, dimension.start + dimension.size)
            axes[dimension.dim] = Axis(labels[stay[labels]])
        return tuple(axes)

    def _stand_in(self, name: str, axes: Axes, there: Mask, stay: Mask) -> Tensor:
        """Returns what stands for a tensor in a run: without data, or what stays of a copy; plain tables keep data."""
        tensor = self.tensors[name]
        dtype, device = self._was[name]
        if not self.real and name not in self.tables:
            shape = list(tensor.shape)
            for dim, axis in enumerate(axes):
                if axis is not None:
                    shape[dim] = len(axis.labels)
            return blank(tuple(shape), dtype)
        made = tensor.detach().to(device, dtype, copy=True)
        for dimension in self._by_name.get(name, ()):
            labels = np.arange(dimension.start, dimension.start + dimension.size)
            stays = stay[labels[there[labels]]]
            if not stays.all():
                kept_indices = torch.from_numpy(np.flatnonzero(stays))
                made = made.index_select(dimension.dim, kept_indices.to(made.device))
        return made

    # -- after a cut -----------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Looks the tensors up again (a move to another device makes new buffers) and checks that shapes still fit.

        Raises:
            UsageError: if the network is not the one that the graph was built for.
        """
        tensors = named_tensors(self.model)
        tables = plain_tables(self.model)
        for name in self.tables:
            table = self._table_now(name, tables.get(name))
            if table is not None:
                tensors[name] = table
        changed = [name for name, tensor in tensors.items() if not self._fits(name, tensor)]
        changed += [name for name in self.tensors if name not in tensors]
        if changed:
            raise UsageError(
                f"The network changed since the graph was built ({changed[0]}); build a new DependencyGraph."
            )
        self.tensors = tensors
        self.names = {id(tensor): name for name, tensor in tensors.items()}

    def _table_now(self, name: str, held: Tensor | None) -> Tensor | None:
        """Returns the table that an attribute holds; one that forward made anew, and that has no node, as it was."""
        if held is not None and self._fits(name, held):
            return held
        rows = [self.structure.labels_of(dimension) for dimension in self._by_name.get(name, ())]
        is_prunable = any((self.structure.node_of_label[row] >= 0).any() for row in rows)
        return None if is_prunable else self.tensors[name]

    def _fits(self, name: str, tensor: Tensor) -> bool:
        """Says whether a tensor has the shape that the labels left say."""
        if name not in self.tensors:
            return False
        for dimension in self._by_name.get(name, ()):
            if dimension.dim >= tensor.dim():
                return False
            if tensor.shape[dimension.dim] != len(self.structure.labels_of(dimension)):
                return False
        return True

    def commit(self, removed: Mask) -> None:
        """Takes note that labels are gone; called by a plan that was executed."""
        self.structure.alive &= ~removed
        self.structure.renumber()
        self.refresh()

    # -- names -----------------------------------------------------------------------------------------------------

    def named(self) -> dict[str, Tensor]:
        """Returns every parameter and buffer by all its names."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        buffers = dict(self.model.named_buffers(remove_duplicate=False))
        return {**parameters, **buffers}

    def owner_path(self, path: str) -> str:
        """Returns the path of the module that a user knows: parametrised weights belong to their layer."""
        if ".parametrizations." not in f"{path}.":
            return path
        return path.split(".parametrizations.")[0]

    def owner(self, path: str) -> nn.Module:
        """Returns the module that a user knows."""
        return self.model.get_submodule(self.owner_path(path))

    # -- facts and labels ------------------------------------------------------------------------------------------

    def _collect(self, trace: Trace) -> None:
        """Adds a trace's facts to the structure's, with the places where they were said."""
        facts = self.structure.facts
        offset = len(facts.places)
        facts.places += [(entry.name, entry.where) for entry in trace.entries]
        facts.places.append(("", ""))  # what is said after the last operation
        facts.ties += [(one, other, place + offset) for one, other, place in trace.ties]
        facts.pins += [(labels, place + offset, why) for labels, place, why in trace.pins]
        facts.inexact += [(labels, place + offset, why) for labels, place, why in trace.inexact]
        facts.aligned += [(labels, place + offset, multiple) for labels, place, multiple in trace.aligned]
        facts.consumed += trace.consumed
        facts.roles += trace.roles
        bias_of = self.structure.bias_of
        np.maximum(bias_of, trace.bias_of[: len(bias_of)], out=bias_of)  # -1 where a mode saw no bias

    def dimension(self, name: str, dim: int) -> Dimension | None:
        """Returns a dimension of a parameter or buffer; None where it cannot shrink at all."""
        for dimension in self._by_name.get(name, ()):
            if dimension.dim == dim:
                return dimension
        return None

    def known_dimension(self, name: str, dim: int) -> Dimension:
        """Returns a dimension that can shrink."""
        return next(dimension for dimension in self._by_name[name] if dimension.dim == dim)

    def labels(self, name: str, dim: int) -> Labels:
        """Returns the labels along a dimension; none where it cannot shrink at all."""
        dimension = self.dimension(name, dim)
        if dimension is None:
            return np.empty(0, np.int64)
        return self.structure.labels_of(dimension)

    def shapes_by_id(self, removed: Mask) -> dict[int, tuple[int, ...]]:
        """Returns id of a tensor -> its shape once labels are removed, for those that change."""
        found = {}
        for name, dimensions in self._by_name.items():
            tensor = self.tensors[name]
            shape = list(tensor.shape)
            for dimension in dimensions:
                gone = removed[dimension.start : dimension.start + dimension.size]
                shape[dimension.dim] -= int(gone.sum())
            if tuple(shape) != tuple(tensor.shape):
                found[id(tensor)] = tuple(shape)
        return found


# Of modules that ask for their mode, those that treat channels alike in both.
_ALIKE = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    nn.MultiheadAttention,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
)


def _does_otherwise_in_training(module: nn.Module) -> bool:
    """Says whether a module that asks for its mode may handle its channels in another way when it trains."""
    kind = type(module)
    if kind.__module__ == "torchvision.ops.stochastic_depth":  # noise with no channels of its own
        return False
    is_torchs_own = kind.__module__.startswith("torch.nn.modules.") or kind is ByHeads
    return not (is_torchs_own and issubclass(kind, _ALIKE))


def _pin_results(trace: Trace, tensors: list[Tensor], why: str) -> None:
    """What leaves the network keeps its shape, and so does what its values are positions of."""
    for tensor in tensors:
        for axis in trace.axes(tensor):
            trace.pin(axis, why)
        info = trace.infos.get(id(tensor))
        for labels in info.points_at + info.picked_from if info is not None else ():
            trace.pin(Axis(labels), why)


def _open_splits(trace: Trace) -> list[Split]:
    """Returns the splits of which the code gives a second size as something else than a number."""
    found = []
    for split in trace.splits:
        places = range(len(split.dims))
        may_change = [place for place in places if (split.place, split.dims[place]) not in trace.said_in_numbers]
        if set(may_change) - {split.chosen}:
            found.append(split._replace(may_change=tuple({*may_change, split.chosen})))
    return found


def _do_alike(one: list[Entry], other: list[Entry]) -> bool:
    """Says whether two runs did the same to labels, normalisation and what hands them on as they are apart."""
    return _outline(one) == _outline(other)


def _outline(entries: list[Entry]) -> list[tuple[str, str]]:
    found = []
    for entry in entries:
        normalises = "norm" in entry.name
        if entry.inputs and not normalises and not _hands_on(entry):
            found.append((entry.where, entry.name))
    return found


def _hands_on(entry: Entry) -> bool:
    # Such as the noise of stochastic depth, which has no channels of its own.
    going_in = {id(labels) for labels in entry.inputs}
    coming_out = {id(labels) for labels in entry.coming_out}
    return schema(entry.func).pointwise and going_in == coming_out and not entry.numbers
