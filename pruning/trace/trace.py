"""One run of a network in which every tensor carries labels: which slices of which parameters each index stems from.

The run happens on stand-ins without data (device `meta`), so it computes, copies and changes nothing. Tensors that do
not depend on inputs or parameters (masks built in forward, constants) keep their values and meet the stand-ins as
stand-ins of their own. What cannot run without data runs on cloned data (`real=True`).

A label is an integer. `tie` says that two rows of labels live and die index by index together, `pin` that they must
stay. Rules (pruning/rules.py) call these per operation; pruning/graph.py joins them at the end.
"""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruning.modules.calls import RUN_ERRORS as RUN_ERRORS
from pruning.trace.call import Call, Notes
from pruning.trace.labels import Axes, Entry, Info, Labels, Rows
from pruning.trace.meta_shapes import compute
from pruning.trace.rows import handed_on, is_move, made_by
from pruning.trace.schema import schema, tensor_outputs, tensors_in


class Trace(TorchDispatchMode, Notes):
    """Watches one forward pass and collects what its operations say about labels.

    Args:
        rules: operation name -> rule; see pruning/rules.py.
        first_label: the first integer free for labels that stem from no parameter.
        real: stand-ins hold data; constants then need no conversion.
    """

    strict = False  # a rule that fails costs coverage; in a rehearsal it is a finding

    def __init__(self, rules: dict[str, Any], first_label: int, *, real: bool = False) -> None:
        TorchDispatchMode.__init__(self)
        Notes.__init__(self, first_label)
        self.rules, self.real = rules, real
        self._kept_alive: list[Any] = []  # a freed tensor's id may be given to another one
        self._twins: dict[int, Tensor] = {}

    # -- the run ---------------------------------------------------------------------------------------------------

    def start(self, tensor: Tensor, axes: Axes) -> None:
        """Labels a parameter or buffer before the run."""
        self._kept_alive.append(tensor)
        self.infos[id(tensor)] = Info(axes, weight=True, plain=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        _, name, pointwise, composite = schema(func)
        if composite and name not in self.rules:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if func.namespace == "profiler":  # marks on a time line, which come and go
            return func(*args, **kwargs)
        self.entry = Entry(func, name, self.stack[-1][0] if self.stack else "")
        if not self.real:
            args, kwargs = self._on_stand_ins(args, kwargs)
        inputs = tensors_in(args, kwargs)
        self._open(inputs, args, kwargs, pointwise)
        out = self._execute(func, args, kwargs)
        self.entry.form = type(out)
        self._close(Call(self, func, args, kwargs, tensor_outputs(out)), inputs)
        return self._settled(out)

    def _execute(self, func: Any, args: Any, kwargs: Any) -> Any:
        return compute(func, self.entry.name, args, kwargs)

    def _settled(self, out: Any) -> Any:
        return out

    def _on_stand_ins(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Where data meets stand-ins, the data becomes a stand-in too, and devices named by hand give way."""
        inputs = tensors_in(args, kwargs)
        metas = sum(tensor.is_meta for tensor in inputs) + sum(id(tensor) in self._twins for tensor in inputs)
        if not metas:
            return args, kwargs
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("meta")}
        if all(tensor.is_meta for tensor in inputs):
            return args, kwargs
        return [self._twin(value) for value in args], {key: self._twin(value) for key, value in kwargs.items()}

    def _twin(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)([self._twin(item) for item in value]) if not hasattr(value, "_fields") else value
        if not isinstance(value, Tensor) or value.is_meta:
            return value
        twin = self._twins.get(id(value))
        if twin is None:
            twin = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            self._twins[id(value)] = twin
            self._kept_alive.extend((value, twin))
            if id(value) in self.infos:
                self.infos[id(twin)] = self.infos[id(value)]
        if value.numel() == 1:  # sqrt(width) made a tensor is a number like any other
            self.entry.numbers += (value.item(),)
        return twin

    def _open(self, inputs: list[Tensor], args: Any, kwargs: Any, pointwise: bool) -> None:
        """Notes what goes into an operation."""
        entry = self.entry
        for tensor in inputs:
            info = self.infos.get(id(tensor))
            if info is not None:
                entry.inputs.extend(axis.labels for axis in info.axes if axis is not None)
                entry.scales.extend(info.summed)
                for labels in info.points_at:
                    self.pins.append((labels, len(self.entries), "positions along it are used as numbers"))
        if entry.name in ("aten.as_strided", "aten.as_strided_"):
            self.strides = inputs[0].stride()
        if pointwise or entry.name in _NUMERIC:
            entry.numbers += tuple(
                value for value in (*args, *kwargs.values()) if isinstance(value, (int, float)) and value is not True
            )

    def _close(self, call: Call, inputs: list[Tensor]) -> None:
        """Applies the rule of an operation and notes what came out."""
        results = self._apply(call, inputs)
        sources = [tensor for tensor in inputs if tensor.dim()]
        weight = bool(sources) and all(self.is_weight(tensor) for tensor in sources)
        self.entry.outs = [(out.shape, out.dtype, axes.axes) for out, axes in zip(call.outs, results, strict=True)]
        plain = weight and is_move(call.name) and self.is_plain(inputs[0])
        rows = self._rows(call, inputs)
        for place, (out, info) in enumerate(zip(call.outs, results, strict=True)):
            self._kept_alive.append(out)
            self._note_overwriting(call, out, info)
            behind = rows[place] if place < len(rows) else None
            info = info._replace(weight=weight, summed=self._sums(call, inputs, weight), rows=behind, plain=plain)
            if any(axis is not None for axis in info.axes) or info.points_at or info.summed or info.rows or weight:
                self.infos[id(out)] = info
            else:
                self.infos.pop(id(out), None)
        if self.real and not is_move(call.name):
            self.entry.decided = [
                None if out.is_floating_point() or any(info.axes) else out.clone()
                for out, info in zip(call.outs, results, strict=True)
            ]
        self.entries.append(self.entry)

    def _rows(self, call: Call, inputs: list[Tensor]) -> list[Rows | None]:
        """Follows outputs of layers whose weights are parameters as they stand, and notes who else reads either."""
        place = len(self.entries)
        made = made_by(call, place)
        found: list[Rows | None] = [made] if made else []
        for number, tensor in enumerate(inputs):
            info = self.infos.get(id(tensor))
            if info is None:
                continue
            if not is_move(call.name):
                own = [Rows(torch.from_numpy(axis.labels)) for axis in info.axes if axis] if info.plain else []
                self.row_uses += [(rows, place) for rows in (*own, info.rows) if rows]
            if number == 0 and info.rows is not None:
                self.entry.rows = info.rows
                found = found or handed_on(call, info.rows, place)
        return found

    def _sums(self, call: Call, inputs: list[Tensor], weight: bool) -> tuple[Labels, ...]:
        """A scale that depends on the width of a dot product may follow it, after some moves; see `Info.summed`."""
        if self.entry.summed or weight or not (schema(call.func)[2] or is_move(call.name)):
            return tuple(self.entry.summed)
        infos = [self.infos.get(id(tensor)) for tensor in inputs]
        return next((info.summed for info in infos if info is not None and info.summed), ())

    def _note_overwriting(self, call: Call, out: Tensor, info: Info) -> None:
        # In-place results may share memory with views met before; their values are no longer known to vanish.
        if call.func._schema.is_mutable and any(axis is not None and not axis.zero for axis in info.axes):
            self._overwritten.add(out.untyped_storage()._cdata)

    def _apply(self, call: Call, inputs: list[Tensor]) -> list[Info]:
        rule = self.rules.get(call.name)
        if rule is None and schema(call.func)[2]:
            rule = self.rules["pointwise"]
        if inputs and not self.entry.inputs and call.name not in _MAKERS:
            rule = None  # no labels in, none out
        self.entry.described = len(call.outs)
        try:
            result = rule(call) if rule is not None else None
        except RUN_ERRORS as error:
            if self.strict:
                raise
            rule, why = None, f"the rule for {call.name} does not take this call ({type(error).__name__}: {error})"
        else:
            why = f"no rule for {call.name}"
        if rule is None:
            for axis in (axis for tensor in inputs for axis in self.axes(tensor)):
                self.pin(axis, why)
            return [Info((None,) * out.dim()) for out in call.outs]
        self.entry.described = len(result) if isinstance(result, list) else 1
        return as_infos(result, call.outs)

    # -- modules on the way ----------------------------------------------------------------------------------------

    def failing_module(self, error: BaseException) -> nn.Module | None:
        """Returns the innermost module in whose code an error arose."""
        for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module):
                return owner
        return None


# Operations whose results may carry labels although nothing that goes in does.
_MAKERS = frozenset(
    f"aten.{name}"
    for name in ("expand", "repeat", "new_zeros", "new_empty", "new_ones", "new_full", "new_empty_strided")
)


# Operations that are not pointwise but take numbers on which values, not shapes, depend.
_NUMERIC = frozenset(f"aten.{name}" for name in ("full", "fill_", "fill", "new_full", "full_like", "addmm", "baddbmm"))


def as_infos(result: Any, outs: list[Tensor]) -> list[Info]:
    """Brings what a rule returned into one Info per output; outputs it says nothing of carry no labels."""
    infos = result if isinstance(result, list) else [] if result is None else [result]
    infos = [item if isinstance(item, Info) else Info(tuple(item)) for item in infos]
    infos += [Info((None,) * out.dim()) for out in outs[len(infos) :]]
    for info, out in zip(infos, outs, strict=True):
        sizes = [axis is None or len(axis.labels) == size for axis, size in zip(info.axes, out.shape, strict=True)]
        if not all(sizes):
            raise AssertionError(f"A rule returned axes of the wrong length for an output of shape {tuple(out.shape)}.")
    return infos
