"""One run of a network in which every tensor carries labels: which slices of which parameters each index stems from.

The run happens on stand-ins without data (device `meta`), so it computes, copies and changes nothing. Tensors that do
not depend on inputs or parameters (masks built in forward, constants) keep their values and meet the stand-ins as
stand-ins of their own. What cannot run without data runs on cloned data (`real=True`).

A label is an integer. `tie` says that two rows of labels live and die index by index together, `pin` that they must
stay. Rules (pruning/trace/rules/) call these per operation; pruning/trace/components.py joins them at the end.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pruning.modules.calls import RUN_ERRORS
from pruning.modules.snapshot import Writes
from pruning.trace.call import Call, Notes
from pruning.trace.labels import Axes, Entry, Info, Labels, Rows, Table
from pruning.trace.meta_shapes import compute
from pruning.trace.outputs import ReadByAttention
from pruning.trace.rows import handed_on, is_move, made_by
from pruning.trace.rules.table import FOR_THE_SHAPE, Kind, Rule, kind_of
from pruning.trace.schema import schema, tensor_outputs, tensors_in


class Trace(TorchDispatchMode, Notes):
    """Watches one forward pass and collects what its operations say about labels.

    Args:
        rules: operation name -> rule; see pruning/trace/rules/table.py.
        first_label: the first integer free for labels that stem from no parameter.
        real: stand-ins hold data; constants then need no conversion.
    """

    strict = False  # a rule that fails costs coverage; in a dry run it is a finding

    def __init__(self, rules: dict[str, Rule], first_label: int, *, real: bool = False) -> None:
        TorchDispatchMode.__init__(self)
        Notes.__init__(self, first_label)
        self.rules = rules
        self.real = real
        self.writes = Writes(())  # to tensors that must come out as they were
        self.read_by_attention = ReadByAttention()
        self._kept_alive: list[Any] = []  # a freed tensor's id may be given to another one
        self._twins: dict[int, Tensor] = {}  # id of a tensor with data -> its stand-in
        self._written: set[int] = set()  # where data lies that a stand-in was written over
        self._made: set[int] = set()  # of a run on data: tensors whose values parameters had a part in
        self._made_at: dict[int, int] = {}  # id of a tensor -> the number of the operation that made it
        self.returned: set[int] = set()  # numbers of the operations that made what is kept after the run
        self._drawn: set[int] = set()  # tensors whose values chance had a part in

    # -- the way of one operation ----------------------------------------------------------------------------------

    def start(self, tensor: Tensor, axes: Axes) -> None:
        """Labels a parameter or buffer before the run."""
        self._kept_alive.append(tensor)
        self.infos[id(tensor)] = Info(axes, weight=True, plain=True)
        self._made.add(id(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = schema(func)
        if known.composite and known.name not in self.rules:
            with self:  # the operations that it is made of arrive here one by one
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if func.namespace == "profiler":  # marks on a time line, which come and go
            return func(*args, **kwargs)

        where = self.stack[-1][0] if self.stack else ""
        self.entry = Entry(func, known.name, where)
        if not self.real:
            given = args
            args, kwargs = self._on_stand_ins(given, kwargs)
            if func._schema.is_mutable:
                self._note_written(given, args)
        if func._schema.is_mutable:
            self.writes.note((*args, *kwargs.values()))
        inputs = tensors_in(args, kwargs)
        if any(tensor.is_meta or id(tensor) in self._made for tensor in inputs):
            self.steps += 1
        self._open(inputs, args, kwargs)

        out = self._execute(func, args, kwargs)

        self.entry.form = type(out)
        call = Call(self, func, args, kwargs, tensor_outputs(out))
        self._close(call, inputs)
        return self._settled(out)

    def _execute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs the operation; the dry run mends what fails here."""
        return compute(func, self.entry.name, args, kwargs)

    def _settled(self, out: Any) -> Any:
        """Returns what the network gets to see of a result; the dry run may put another in its place."""
        return out

    # -- before it runs --------------------------------------------------------------------------------------------

    def _on_stand_ins(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Where data meets stand-ins, the data becomes a stand-in too, and devices named by hand give way."""
        inputs = tensors_in(args, kwargs)
        meets_stand_in = any(tensor.is_meta or self._is_out_of_date(tensor) for tensor in inputs)
        if not meets_stand_in:
            # What no parameter had a part in keeps its values, wherever parameters lie.
            if torch.device(kwargs.get("device") or "cpu").type == "meta":
                kwargs = {**kwargs, "device": torch.device("cpu")}
            return args, kwargs
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("meta")}
        if all(tensor.is_meta for tensor in inputs):
            return args, kwargs
        args = [self._twin(value) for value in args]
        kwargs = {key: self._twin(value) for key, value in kwargs.items()}
        return args, kwargs

    def _is_out_of_date(self, tensor: Tensor) -> bool:
        """Says whether a stand-in was written over a tensor's data, or over a view of it."""
        return bool(self._written) and tensor.untyped_storage().data_ptr() in self._written

    def _note_written(self, given: Any, args: Any) -> None:
        for before, now in zip(given, args, strict=True):
            if isinstance(before, Tensor) and before is not now:
                self._written.add(before.untyped_storage().data_ptr())

    def _twin(self, value: Any) -> Any:
        """Returns the stand-in of a tensor with data, the same one every time; anything else as it is."""
        if isinstance(value, (list, tuple)):
            if hasattr(value, "_fields"):
                return value
            twins = [self._twin(item) for item in value]
            return type(value)(twins)
        if not isinstance(value, Tensor) or value.is_meta:
            return value
        if value.numel() == 1 and id(value) not in self._drawn:  # sqrt(width) made a tensor is a number like any other
            self.entry.numbers += (value.item(),)
        self._note_table(value)
        twin = self._twins.get(id(value))
        if twin is None:
            twin = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            self._twins[id(value)] = twin
            self._kept_alive.extend((value, twin))
            if id(value) in self.infos:
                self.infos[id(twin)] = self.infos[id(value)]
            if id(value) in self._made_at:
                self._made_at[id(twin)] = self._made_at[id(value)]
        return twin

    def _open(self, inputs: list[Tensor], args: Any, kwargs: Any) -> None:
        """Notes what goes into an operation, as long as it is what it was: some are written over in place."""
        entry = self.entry
        place = len(self.entries)
        for tensor in inputs:
            info = self.infos.get(id(tensor))
            if info is None:
                continue
            entry.inputs += [axis.labels for axis in info.axes if axis is not None]
            entry.scales += info.summed
            for labels in info.points_at:
                self.pins.append((labels, place, "positions along it are used as numbers"))
            # Code that moves it and asks for its shape alone does not use its values.
            hands_on = is_move(entry.name) or entry.name in FOR_THE_SHAPE
            for labels in () if hands_on else info.picked_from:
                self.pins.append((labels, place, "a single position of it is picked"))
        if entry.name in ("aten.as_strided", "aten.as_strided_"):
            self.strides = inputs[0].stride()

        if self.real:
            self._note_values(inputs)
        entry.from_nothing = not any(tensor.is_meta or id(tensor) in self._made for tensor in inputs)
        takes_numbers = schema(entry.func).pointwise or Kind.TAKES_NUMBERS in kind_of(entry.name)
        if takes_numbers:
            for value in (*args, *kwargs.values()):
                if isinstance(value, (int, float)) and value is not True:
                    entry.numbers += (value,)

    def _note_values(self, inputs: list[Tensor]) -> None:
        """In a run on data, a single value that no parameter had a part in is a number like any other."""
        depends = [id(tensor) in self._made for tensor in inputs]
        for tensor, made in zip(inputs, depends, strict=True):
            if made or not any(depends):
                continue
            if tensor.dim() == 0 and id(tensor) not in self._drawn:
                self.entry.numbers += (tensor.item(),)
            self._note_table(tensor)

    def _note_table(self, tensor: Tensor) -> None:
        """Takes down values that no parameter had a part in: the code may compute them from a width."""
        if tensor.numel() < 2 or tensor.layout != torch.strided or id(tensor) in self._drawn:
            return
        labels = tuple(None if axis is None else axis.labels for axis in self.axes(tensor))
        is_labelled = any(row is not None for row in labels)
        values = tensor.detach().clone() if is_labelled else None
        self.entry.tables.append(Table(labels, values, b"" if is_labelled else digest(tensor)))

    def makers(self, tensors: list[Tensor]) -> list[int]:
        """Returns the numbers of the operations that made some tensors, as far as any did."""
        places = [self._made_at.get(id(tensor)) for tensor in tensors]
        return [place for place in places if place is not None]

    # -- after it ran ----------------------------------------------------------------------------------------------

    def _close(self, call: Call, inputs: list[Tensor]) -> None:
        """Applies the rule of an operation and notes what came out."""
        entry = self.entry
        entry.reads = self.makers(inputs)
        self._made_at.update((id(out), len(self.entries)) for out in call.outs)
        self.read_by_attention.note(call.name, inputs, call.outs, self.is_weight)
        infos = self._apply(call, inputs)
        results = list(zip(call.outs, infos, strict=True))
        entry.outs = [(out.shape, out.dtype, info.axes) for out, info in results]

        moved = is_move(call.name)
        sources = [tensor for tensor in inputs if tensor.dim()]  # a single number does not make it less of a weight
        if Kind.PICKS in kind_of(call.name) and inputs[0].dim() > 2:
            sources = inputs[:1]  # the matrices of chosen experts; rows of a table are values, not weights
        weight = bool(sources) and all(self.is_weight(tensor) for tensor in sources)
        plain = weight and moved and self.is_plain(inputs[0])
        handed_on = self.infos.get(id(inputs[0])) if moved and inputs else None
        product = Kind.MULTIPLIES in kind_of(call.name) and not weight
        picked = Kind.PICKS in kind_of(call.name) and self.is_weight(inputs[0]) and not weight
        if handed_on is not None:
            product, picked = handed_on.product, handed_on.picked
        summed = () if weight else self._summed(call, inputs)
        if entry.summed:
            summed = tuple(entry.summed)
        picked_from = self._picked_from(inputs) if moved else ()
        rows = self._rows(call, inputs)
        self._mark_sources(call, inputs, call.outs)

        for place, (out, info) in enumerate(results):
            self._kept_alive.append(out)
            self._note_overwriting(call, out, info)
            behind = rows[place] if place < len(rows) else None
            info = info._replace(
                picked_from=info.picked_from + picked_from,
                weight=weight,
                summed=summed,
                rows=behind,
                plain=plain,
                product=product,
                picked=picked,
            )
            if info.says_nothing:
                self.infos.pop(id(out), None)  # in place, the tensor may have been known as something else
            else:
                self.infos[id(out)] = info
        if self.real and not moved:
            entry.decided = [_decided(out, info) for out, info in results]
        self.entries.append(entry)

    def _mark_sources(self, call: Call, inputs: list[Tensor], outs: list[Tensor]) -> None:
        """Notes of what comes out whether parameters, or chance, had a part in it."""
        if self.real and any(id(tensor) in self._made for tensor in inputs):
            self._made.update(id(out) for out in outs)
        is_random = torch.Tag.nondeterministic_seeded in call.func.tags
        if is_random or any(id(tensor) in self._drawn for tensor in inputs):
            self._drawn.update(id(out) for out in outs)

    def _apply(self, call: Call, inputs: list[Tensor]) -> list[Info]:
        """Returns what the operation's rule says of each output; without a rule, labels end here and must stay."""
        rule = self.rules.get(call.name)
        if rule is None and schema(call.func).pointwise:
            rule = self.rules["pointwise"]
        if inputs and not self.entry.inputs and Kind.MAKES not in kind_of(call.name):
            rule = None  # no labels in, none out

        self.entry.described = len(call.outs)
        why = f"no rule for {call.name}"
        result = None
        if rule is not None:
            try:
                result = rule(call)
            except RUN_ERRORS as error:
                if self.strict:
                    raise
                rule = None
                why = f"the rule for {call.name} does not take this call ({type(error).__name__}: {error})"
        if rule is None:
            # What is not known to pass might be anything, so nothing that went in may go.
            for tensor in inputs:
                for axis in self.axes(tensor):
                    self.pin(axis, why)
            return [_unlabelled(out) for out in call.outs]
        self.entry.described = len(result) if isinstance(result, list) else 1
        return as_infos(result, call.outs)

    def _picked_from(self, inputs: list[Tensor]) -> tuple[Labels, ...]:
        """Returns the dimensions of which what goes in is one position."""
        found: tuple[Labels, ...] = ()
        for tensor in inputs:
            info = self.infos.get(id(tensor))
            if info is not None:
                found += info.picked_from
        return found

    def _summed(self, call: Call, inputs: list[Tensor]) -> tuple[Labels, ...]:
        """A scale that depends on the width of a dot product may follow it, after some moves; see `Info.summed`."""
        hands_on = schema(call.func).pointwise or is_move(call.name)
        if not hands_on:
            return ()
        for tensor in inputs:
            info = self.infos.get(id(tensor))
            if info is not None and info.summed:
                return info.summed
        return ()

    def _rows(self, call: Call, inputs: list[Tensor]) -> list[Rows | None]:
        """Follows outputs of layers whose weights are parameters as they stand, and notes who else reads either."""
        place = len(self.entries)
        made = made_by(call, place)
        found: list[Rows | None] = [] if made is None else [made]
        for number, tensor in enumerate(inputs):
            info = self.infos.get(id(tensor))
            if info is None:
                continue
            if not is_move(call.name):
                self._note_row_uses(info, place)
            if number == 0 and info.rows is not None:
                self.entry.rows = info.rows
                found = found or handed_on(call, info.rows, place)
        return found

    def _note_row_uses(self, info: Info, place: int) -> None:
        if info.plain:
            for axis in info.axes:
                if axis is not None:
                    labels = axis.labels if axis.labels.flags.writeable else axis.labels.copy()  # torch shares memory
                    self.row_uses.append((Rows(torch.from_numpy(labels)), place))
        if info.rows is not None:
            self.row_uses.append((info.rows, place))

    def _note_overwriting(self, call: Call, out: Tensor, info: Info) -> None:
        # In-place results may share memory with views met before; their values are no longer known to vanish.
        may_be_non_zero = any(axis is not None and not axis.zero for axis in info.axes)
        if call.func._schema.is_mutable and may_be_non_zero:
            self._overwritten.add(out.untyped_storage()._cdata)


def digest(tensor: Tensor) -> bytes:
    """Returns a few bytes that differ where shapes or values do."""
    values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    raw = values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    found = hashlib.blake2b(raw.tobytes(), digest_size=16)
    found.update(str(tuple(tensor.shape)).encode())
    return found.digest()


def _unlabelled(out: Tensor) -> Info:
    return Info((None,) * out.dim())


def _decided(out: Tensor, info: Info) -> Tensor | None:
    """Returns a copy of flags and numbers of places, which the dry run takes as they were; None for all else."""
    if out.is_floating_point() or any(axis is not None for axis in info.axes):
        return None
    return out.clone()


def as_infos(result: Any, outs: list[Tensor]) -> list[Info]:
    """Brings what a rule returned into one Info per output; outputs it says nothing of carry no labels.

    Raises:
        AssertionError: if axes do not fit the shape of their output.
    """
    if result is None:
        result = []
    elif not isinstance(result, list):
        result = [result]
    infos = [item if isinstance(item, Info) else Info(tuple(item)) for item in result]
    unsaid = outs[len(infos) :]
    infos += [_unlabelled(out) for out in unsaid]
    for info, out in zip(infos, outs, strict=True):
        for axis, size in zip(info.axes, out.shape, strict=True):
            if axis is not None and len(axis.labels) != size:
                shape = tuple(out.shape)
                raise AssertionError(f"A rule returned axes of the wrong length for an output of shape {shape}.")
    return infos
