"""Watches a network run, once as it is and as often as asked with shrunken shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.errors import UsageError
from pruning.modules.attributes import Attribute
from pruning.modules.calls import RUN_ERRORS, mapped, split_inputs
from pruning.modules.weights import named_tensors
from pruning.trace.components import Dimension, Mask, Structure
from pruning.trace.isolate import blank, run
from pruning.trace.labels import Axis, Entry, Labels, Uses
from pruning.trace.rules import RULES
from pruning.trace.schema import schema
from pruning.trace.trace import Trace


def first_line(error: BaseException) -> str:
    """Returns what an error says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _alike(one: list[Entry], other: list[Entry]) -> bool:
    """Says whether two runs did the same to labels, normalisation and what hands them on as they are apart."""

    def hands_on(entry: Entry) -> bool:
        # Such as the noise of stochastic depth, which has no channels of its own.
        going_in = {id(labels) for labels in entry.inputs}
        coming_out = {id(axis.labels) for _, _, axes in entry.outs for axis in axes if axis is not None}
        return schema(entry.func)[2] and going_in == coming_out and not entry.numbers

    def outline(entries: list[Entry]) -> list[tuple[str, str]]:
        return [(entry.where, entry.name) for entry in entries
                if entry.inputs and "norm" not in entry.name and not hands_on(entry)]  # fmt: skip

    return outline(one) == outline(other)


class TracedNetwork:
    """A network, its labelled tensors, and the operations it was seen to run.

    Args:
        model: the network.
        example_inputs: as for `DependencyGraph`.

    Raises:
        UsageError: if the network holds nothing to prune or does not run on these inputs.
    """

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        self.model, self.tensors = model, named_tensors(model)
        self.names = {id(tensor): name for name, tensor in self.tensors.items()}
        # The network may move or change its type later; the example inputs do not, so rehearsals stay where it was.
        self._was = {name: (tensor.dtype, tensor.device) for name, tensor in self.tensors.items()}
        self.notes: list[str] = []
        self.real = False
        self._given = split_inputs(example_inputs)
        self._inputs = {False: self._given, True: self._given}
        self.runs: dict[bool, list[Entry]] = {}
        dimensions = self._dimensions()
        if not dimensions:
            raise UsageError(f"{type(model).__name__} has no parameters to prune.")
        self._by_name: dict[str, list[Dimension]] = {}
        for dimension in dimensions:
            self._by_name.setdefault(dimension.name, []).append(dimension)
        self.row_uses: dict[bool, Uses] = {}
        traces = self._traces(sum(dimension.size for dimension in dimensions))
        self.structure = Structure(dimensions, max(trace.next_label for trace in traces.values()))
        for training, trace in traces.items():
            self._collect(trace)
            self.runs[training] = trace.entries
            self.row_uses[training] = trace.row_uses
        modules = dict(model.named_modules())
        self.grouped = {modules[entry.where] for entries in self.runs.values() for entry in entries
                        if entry.name == "aten.convolution" and entry.choices == [False]}  # fmt: skip
        if len(self.runs) == 2 and _alike(self.runs[False], self.runs[True]):
            del self.runs[True], self.row_uses[True]

    def _dimensions(self) -> list[Dimension]:
        """Lists the dimensions that could shrink: those of more than one index that are no kernel's sides."""
        kernels = {id(tensor) for module in self.model.modules() if isinstance(module, nn.modules.conv._ConvNd)
                   for tensor in module.parameters(recurse=False)}  # fmt: skip
        found, start = [], 0
        for name, tensor in self.tensors.items():
            sizes = tensor.shape[:2] if id(tensor) in kernels else tensor.shape
            for dim, size in enumerate(sizes):
                if size > 1:
                    found.append(Dimension(name, dim, start, size, isinstance(tensor, nn.Parameter)))
                    start += size
        return found

    # -- runs ------------------------------------------------------------------------------------------------------

    def _traces(self, labels: int) -> dict[bool, Trace]:
        """Runs the network in both modes, without data if it can."""
        traces, errors = self._attempt(labels)
        if not traces:
            self.notes.append(f"needs data to run: {first_line(errors[False])}")
            self.real = True
            traces, errors = self._attempt(labels)
        if not traces:
            error = errors[False]
            raise UsageError(f"{type(self.model).__name__} does not run on these example inputs: "
                             f"{type(error).__name__}: {first_line(error)}") from error  # fmt: skip
        for training, error in errors.items():
            mode = "training" if training else "eval"
            self.notes.append(f"does not run in {mode} mode on these inputs: {first_line(error)}")
        return traces

    def _attempt(self, first_label: int) -> tuple[dict[bool, Trace], dict[bool, BaseException]]:
        traces: dict[bool, Trace] = {}
        errors: dict[bool, BaseException] = {}
        everything = np.ones(first_label, dtype=bool)
        for training in (False, True):
            for inputs in self._ways_to_call(training):
                trace = Trace(RULES, first_label, real=self.real)
                self._inputs[training] = inputs
                try:
                    self.run(trace, everything, everything, training, [])
                except RUN_ERRORS as error:
                    errors.setdefault(training, error)
                    continue
                errors.pop(training, None)
                first_label, traces[training] = trace.next_label, trace
                break
        return traces, errors

    def _ways_to_call(self, training: bool) -> list[Any]:
        """Returns the inputs; for training a batch of two as well, since batch norm cannot train on one."""
        if not training:
            return [self._given]

        def twice(tensor: Tensor) -> Tensor:
            return torch.cat([tensor, tensor]) if tensor.dim() and tensor.shape[0] == 1 else tensor

        return [self._given, mapped(self._given, twice)]

    def run(self, trace: Trace, there: Mask, stay: Mask, training: bool, attributes: list[Attribute]) -> None:
        """Runs the model with what stays of its tensors, labelled, and pins what it returns."""
        stand_ins = {}
        for name, tensor in self.tensors.items():
            axes: list[Axis | None] = [None] * tensor.dim()
            dtype, device = self._was[name]
            made = tensor.detach().to(device, dtype, copy=True) if self.real else None
            for dimension in self._by_name.get(name, ()):
                labels = np.arange(dimension.start, dimension.start + dimension.size)
                labels = labels[there[labels]]
                axes[dimension.dim] = Axis(labels[stay[labels]])
                if made is not None and not stay[labels].all():
                    made = made.index_select(
                        dimension.dim, torch.from_numpy(np.flatnonzero(stay[labels])).to(made.device)
                    )
            if made is None:
                sizes = zip(tensor.shape, axes, strict=True)
                made = blank(tuple(size if axis is None else len(axis.labels) for size, axis in sizes), dtype)
            stand_ins[id(tensor)] = made
            trace.start(made, tuple(axes))
        outputs, held = run(
            self.model, self._inputs[training], trace, stand_ins=stand_ins, training=training, attributes=attributes
        )
        self._pin_results(trace, outputs, "is the network's output")
        held = [tensor for tensor in held if not trace.is_weight(tensor)]  # a normalised weight is made anew each time
        self._pin_results(trace, held, "is kept in a module's attribute")

    def _pin_results(self, trace: Trace, tensors: list[Tensor], why: str) -> None:
        for tensor in tensors:
            info = trace.infos.get(id(tensor))
            for labels in (*(axis.labels for axis in trace.axes(tensor) if axis), *(info.points_at if info else ())):
                trace.pin(Axis(labels), why)

    def refresh(self) -> None:
        """Looks the tensors up again (a move to another device makes new buffers) and checks that shapes still fit.

        Raises:
            UsageError: if the network is not the one that the graph was built for.
        """
        tensors = named_tensors(self.model)
        for name, tensor in tensors.items():
            dimensions = self._by_name.get(name, ())
            if name not in self.tensors or any(
                dimension.dim >= tensor.dim() or len(self.structure.labels_of(dimension)) != tensor.shape[dimension.dim]
                for dimension in dimensions
            ):
                raise UsageError(
                    f"The network changed since the graph was built ({name}); build a new DependencyGraph."
                )
        if len(tensors) != len(self.tensors):
            gone = next(name for name in self.tensors if name not in tensors)
            raise UsageError(f"The network changed since the graph was built ({gone}); build a new DependencyGraph.")
        self.tensors = tensors
        self.names = {id(tensor): name for name, tensor in tensors.items()}

    def commit(self, removed: Mask) -> None:
        """Takes note that labels are gone; called by a plan that was executed."""
        self.structure.alive &= ~removed
        self.structure.renumber()
        self.refresh()

    # -- names -----------------------------------------------------------------------------------------------------

    def named(self) -> dict[str, Tensor]:
        """Returns every parameter and buffer by all its names."""
        buffers = dict(self.model.named_buffers(remove_duplicate=False))
        return {**dict(self.model.named_parameters(remove_duplicate=False)), **buffers}

    def owner_path(self, path: str) -> str:
        """Returns the path of the module that a user knows: parametrised weights belong to their layer."""
        return path.split(".parametrizations.")[0] if ".parametrizations." in f"{path}." else path

    def owner(self, path: str) -> nn.Module:
        """Returns the module that a user knows."""
        return self.model.get_submodule(self.owner_path(path))

    # -- facts -----------------------------------------------------------------------------------------------------

    def _collect(self, trace: Trace) -> None:
        """Adds a trace's facts to the structure's, with the places where they were said."""
        facts, offset = self.structure.facts, len(self.structure.facts.places)
        facts.places += [(entry.name, entry.where) for entry in trace.entries] + [("", "")]
        facts.ties += [(one, other, place + offset) for one, other, place in trace.ties]
        facts.pins += [(labels, place + offset, why) for labels, place, why in trace.pins]
        facts.inexact += [(labels, place + offset, why) for labels, place, why in trace.inexact]
        facts.consumed += trace.consumed
        facts.roles += trace.roles
        np.maximum(self.structure.bias_of, trace.bias_of[: len(self.structure.bias_of)], out=self.structure.bias_of)

    def dimension(self, name: str, dim: int) -> Dimension | None:
        """Returns a dimension of a parameter or buffer; None where it cannot shrink at all."""
        return next((dimension for dimension in self._by_name.get(name, ()) if dimension.dim == dim), None)

    def known_dimension(self, name: str, dim: int) -> Dimension:
        """Returns a dimension that can shrink."""
        return next(dimension for dimension in self._by_name[name] if dimension.dim == dim)

    def labels(self, name: str, dim: int) -> Labels:
        """Returns the labels along a dimension; none where it cannot shrink at all."""
        dimension = self.dimension(name, dim)
        return np.empty(0, np.int64) if dimension is None else self.structure.labels_of(dimension)

    def shapes_by_id(self, removed: Mask) -> dict[int, tuple[int, ...]]:
        """Returns id of a tensor -> its shape once labels are removed, for those that change."""
        found = {}
        for name, dimensions in self._by_name.items():
            shape = list(self.tensors[name].shape)
            for dimension in dimensions:
                shape[dimension.dim] -= int(removed[dimension.start : dimension.start + dimension.size].sum())
            if tuple(shape) != tuple(self.tensors[name].shape):
                found[id(self.tensors[name])] = tuple(shape)
        return found
