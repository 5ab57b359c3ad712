"""A second run with the shrunken shapes, watched against the first: does the code of the network go along?

Python code may hold widths as numbers (`view(b, 12, 64)`, `self.hidden`), which labels cannot see. So a choice of nodes
is run dry on stand-ins of the new shapes, and at every operation the labels must equal those left of the first
run. An operation that fails is given the result it should have had, so that one dry run finds all there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruning.modules.attributes import Attribute
from pruning.modules.calls import RUN_ERRORS
from pruning.trace.call import Call
from pruning.trace.components import Mask, Structure
from pruning.trace.labels import Axes, Axis, Entry, Info, Labels, Table
from pruning.trace.meta_shapes import compute
from pruning.trace.rules import RULES
from pruning.trace.rules.table import Kind, kind_of
from pruning.trace.schema import tensor_outputs
from pruning.trace.trace import Trace
from pruning.trace.traced import TracedNetwork

_COPY = "aten.clone"

NUMBER_CHANGES = "a number depends on the width"
TABLE_CHANGES = "a table that the code computes from the width has other values"

_PARTS = frozenset(("aten.slice", "aten.alias"))  # a slice of everything arrives as an alias


class Diverged(RuntimeError):
    """The shrunken network runs other operations than the first run did."""


@dataclass
class Failure:
    """One operation that did not go along.

    Args:
        index: its place in the run.
        entry: the operation of the first run.
        labels: removed labels around it.
        message: what went wrong.
        numbers: those that the operation used this time.
        tables: those that it used this time, if it is about them.
        training: the mode of the run.
    """

    index: int
    entry: Entry
    labels: Labels
    message: str
    numbers: tuple[Any, ...] = ()
    tables: list[Table] | None = None
    training: bool = False

    @property
    def why(self) -> str:
        """What changes other values although the network goes along, in the user's words."""
        return NUMBER_CHANGES if self.tables is None else TABLE_CHANGES


@dataclass
class Report:
    """What a dry run found; nothing, if the network's code runs as before."""

    failures: list[Failure] = field(default_factory=list)
    numbers: list[Failure] = field(default_factory=list)
    error: BaseException | None = None
    where: str = ""
    near: list[Failure] = field(default_factory=list)  # the operations around the error

    @property
    def passed(self) -> bool:
        return not self.failures and self.error is None

    def join(self, other: Report) -> None:
        """Adds what another mode's dry run found."""
        self.failures += other.failures
        self.numbers += other.numbers
        if self.error is None:
            self.error, self.where, self.near = other.error, other.where, other.near


def _shown(numbers: tuple[Any, ...]) -> str:
    return ", ".join(f"{number:.6g}" if isinstance(number, float) else str(number) for number in numbers)


class DryRun(Trace):
    """A trace that expects what an earlier one saw.

    Args:
        rules: operation name -> rule.
        entries: the operations of the first run.
        structure: its nodes.
        removed: labels that are to go.
        real: stand-ins hold data.
    """

    strict = True

    def __init__(self, rules: dict[str, Any], entries: list[Entry], structure: Structure, removed: Mask, *, real: bool):
        super().__init__(rules, 0, real=real)
        self.expected, self.structure = entries, structure
        self.survive = structure.alive & ~removed
        self.removed = removed
        self.report = Report()
        self._stand_in: Any = None
        self._fresh = 0
        self._choices = 0
        self._at = 0
        self._extra = False

    # -- what rules decide stays decided ---------------------------------------------------------------------------

    def new_labels(self, size: int) -> Labels:
        labels = self._now.made_labels[self._fresh]
        self._fresh += 1
        return labels[self.survive[labels]]

    def choose(self, decide: Any) -> Any:
        self._choices += 1
        return self._now.choices[self._choices - 1]

    @property
    def _now(self) -> Entry:
        return self.expected[self._at]

    # -- one operation ---------------------------------------------------------------------------------------------

    def _execute(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._align(self.entry.name)
        self._stand_in = None
        self._fresh = self._choices = 0
        try:
            out = compute(func, self.entry.name, args, kwargs)
            # With less to go by, a gate would send samples elsewhere; that is no fault of the shapes.
            for one, before in zip(tensor_outputs(out), () if self._extra else self._now.decided, strict=False):
                if before is not None and one.shape == before.shape:
                    one.copy_(before)
            return out
        except RUN_ERRORS as error:
            if self._extra:
                raise
            self._fail(str(error).splitlines()[0] if str(error) else type(error).__name__)
            return self._expected_result(args, func)

    def _align(self, name: str) -> None:
        """Finds the operation of the first run; copies come and go with memory layouts and mean nothing."""
        while name != _COPY and self._at < len(self.expected) and self._now.name == _COPY:
            self._at += 1
        there = self._now.name if self._at < len(self.expected) else "the end"
        self._extra = name == _COPY != there
        both_reshape = Kind.RESHAPES in kind_of(there) & kind_of(name)
        if not self._extra and there != name and not (both_reshape or {there, name} <= _PARTS):
            raise Diverged(f"{name} runs where {there} was expected")

    def _expected_result(self, args: Any, func: Any) -> Any:
        entry = self._now
        if func._schema.is_mutable and entry.form is not tuple and args and isinstance(args[0], Tensor):
            return args[0]
        made = [self._blank(shape, dtype, axes) for shape, dtype, axes in entry.outs]
        return made[0] if entry.form not in (list, tuple) else entry.form(made)

    def _blank(self, shape: torch.Size, dtype: torch.dtype, axes: Axes) -> Tensor:
        sizes = [size if axis is None else len(self._survivors(axis)) for size, axis in zip(shape, axes, strict=True)]
        return torch.zeros(sizes, dtype=dtype, device="cpu" if self.real else "meta")

    def _survivors(self, axis: Axis) -> Labels:
        return axis.labels[self.survive[axis.labels]]

    def _close(self, call: Call, inputs: list[Tensor]) -> None:
        if self._extra:
            self._kept_alive.extend(call.outs)
            self._mark_sources(call, inputs, call.outs)
            self.infos[id(call.outs[0])] = Info(self.axes(inputs[0]), weight=True)
            return
        if self._now.idle:
            self._pass_by(call, inputs)
            return
        ties, pins = len(self.ties), len(self.pins)
        failed = bool(self.report.failures) and self.report.failures[-1].index == self._at
        if not failed:
            try:
                problem = self._difference(call.outs, self._apply(call, inputs)) or self._contradiction(ties, pins)
            except RUN_ERRORS as error:
                problem = f"labels do not pass: {error}"
            if problem:
                self._fail(problem)
        self._compare_tables()
        shows_in_tables = self.entry.from_nothing and any(axis is not None for axis in self._axes_now())
        if self.entry.numbers != self._now.numbers and not shows_in_tables:
            now = self._now
            message = f"{_shown(now.numbers)} becomes {_shown(self.entry.numbers)}"
            changed = self._failure(message, now, now.summed + now.scales)
            changed.numbers = self.entry.numbers
            self.report.numbers.append(changed)
        self._go_on(call, not failed and bool(problem), inputs)

    def _axes_now(self) -> list[Axis | None]:
        """Returns the axes of all that comes out of the operation."""
        return [axis for _, _, axes in self._now.outs for axis in axes]

    def _compare_tables(self) -> None:
        """Notes where values that the code computes from a width are not what is left of those in the first run."""
        before, after = self._now.tables, self.entry.tables
        pairs = list(zip(before, after, strict=False))
        if len(before) == len(after) and all(self._is_left_of(one, other) for one, other in pairs):
            return
        changed = self._failure(TABLE_CHANGES)
        changed.tables = after
        self.report.numbers.append(changed)

    def _is_left_of(self, before: Table, after: Table) -> bool:
        """Says whether a table is what is left of an earlier one."""
        if before.values is None or after.values is None:
            return before.digest == after.digest
        expected = before.values
        for dim, labels in enumerate(before.labels):
            if labels is not None:
                kept = torch.from_numpy(np.flatnonzero(self.survive[labels]))
                expected = expected.index_select(dim, kept.to(expected.device))
        same_kind = expected.shape == after.values.shape and expected.dtype == after.values.dtype
        if not same_kind or not expected.is_floating_point():
            return same_kind and torch.equal(expected, after.values)
        return torch.allclose(expected, after.values, rtol=1e-6, atol=1e-12, equal_nan=True)

    def _pass_by(self, call: Call, inputs: list[Tensor]) -> None:
        """Takes a part as it comes: nobody reads its values, and its shape is what code will find."""
        try:
            infos = self._apply(call, inputs)
        except RUN_ERRORS:
            infos = [Info((None,) * out.dim()) for out in call.outs]
        for out, info in zip(call.outs, infos, strict=True):
            self._kept_alive.append(out)
            self.infos[id(out)] = info
        self.entries.append(self.entry)
        self._at += 1

    def _go_on(self, call: Call, replace: bool, inputs: list[Tensor]) -> None:
        """Gives the outputs the labels that they must have."""
        entry = self._now
        outs = call.outs
        if replace and not call.func._schema.is_mutable:
            outs = [self._blank(*out) for out in entry.outs]
            self._stand_in = outs[0] if entry.form not in (list, tuple) else entry.form(outs)
        self._mark_sources(call, inputs, outs)
        for out, (_, _, axes) in zip(outs, entry.outs, strict=False):
            self._kept_alive.append(out)
            left = tuple(axis and Axis(self._survivors(axis), axis.zero) for axis in axes)
            self.infos[id(out)] = Info(left, weight=True)
        self.entries.append(self.entry)
        self._at += 1

    def _settled(self, out: Any) -> Any:
        return out if self._stand_in is None else self._stand_in

    # -- comparisons -----------------------------------------------------------------------------------------------

    def _difference(self, outs: list[Tensor], infos: list[Info]) -> str:
        if len(outs) != len(self._now.outs):
            return f"{len(outs)} results instead of {len(self._now.outs)}"
        spoken_of = list(zip(outs, infos, self._now.outs, strict=True))[: self._now.described]
        for out, info, (shape, _, axes) in spoken_of:
            if len(out.shape) != len(shape):
                return f"{len(out.shape)} dimensions instead of {len(shape)}"
            for size, got, old, axis in zip(out.shape, info.axes, shape, axes, strict=True):
                if axis is None:
                    if size != old or (got is not None and len(got.labels) > 1):
                        return f"a dimension of {old} that should stay becomes {size}"
                    continue
                left = self._survivors(axis)
                if size != len(left):
                    return f"a dimension of {len(axis.labels)} becomes {size} instead of {len(left)}"
                if (got is None and size > 1) or (got is not None and not np.array_equal(got.labels, left)):
                    return "channels change places"
        return ""

    def _contradiction(self, ties: int, pins: int) -> str:
        component, pinned = self.structure.component, self.structure.pinned_by
        for one, other, _ in self.ties[ties:]:
            if not np.array_equal(component[one], component[other]):
                return "channels meet others than before"
        for labels, _, why in self.pins[pins:]:
            if len(labels) > 1 and (pinned[component[labels]] < 0).any():
                return f"a dimension that shrinks {why}"
        return ""

    def broke_off(self, error: BaseException) -> None:
        """Notes an error in the network's own code."""
        self.report.error = error
        near = self.expected[max(self._at - 1, 0) : self._at + 2]
        for entry in near:
            self.report.where = entry.where
            self.report.near.append(self._failure("", entry))

    def _fail(self, message: str) -> None:
        self.report.failures.append(self._failure(message))

    def _failure(self, message: str, entry: Entry | None = None, scales: Sequence[Labels] = ()) -> Failure:
        """Notes what shrinks around an operation, and which dimensions its numbers may have been taken from."""
        entry = entry or self._now
        shrinking = [labels for labels in entry.touched if self.removed[labels].any()]
        removed = [labels[self.removed[labels]] for labels in (*shrinking, *scales)]
        return Failure(self._at, entry, np.concatenate([np.empty(0, np.int64), *removed]), message)


def dry_run(traced: TracedNetwork, removed: Mask, attributes: list[Attribute]) -> Report:
    """Runs the network with labels removed and attributes set, in every mode that differs, and compares."""
    report = Report()
    alive = traced.structure.alive
    for training, entries in traced.runs.items():
        replay = DryRun(RULES, entries, traced.structure, removed, real=traced.real)
        try:
            traced.run(replay, alive, alive & ~removed, training, attributes)
        except RUN_ERRORS as error:
            replay.broke_off(error)
        for found in (*replay.report.failures, *replay.report.numbers, *replay.report.near):
            found.training = training
        report.join(replay.report)
    return report
