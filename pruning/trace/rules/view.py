"""Rules for what moves values about without computing: views, permutations, slices, concatenations."""

from __future__ import annotations

import math

import numpy as np
from torch import nn

from pruning.trace.call import Call, Notes
from pruning.trace.labels import Axes, Axis, Labels
from pruning.trace.rules.table import rule

_LARGEST_TABLE = 20_000_000  # labels of a reshape that mixes dimensions; beyond it the dimensions stay


# -- views -------------------------------------------------------------------------------------------------------------


@rule("view _unsafe_view _reshape_alias _reshape_copy")
def view(call: Call) -> Axes:
    """Splits and merges dimensions."""
    if call.name == "aten.view" and call.outs[0].dtype != call["self"].dtype:
        return reinterpreted(call)
    return reshape(call.trace, call.axes("self"), tuple(call["self"].shape), tuple(call.outs[0].shape))


def reinterpreted(call: Call) -> Axes:
    """A view as another type of the same width keeps its shape; otherwise the last dimension must stay."""
    axes, same = call.axes("self"), call["self"].shape == call.outs[0].shape
    if not same:
        call.trace.pin(axes[-1], "is viewed as another type")
    return axes if same else (*axes[:-1], None)


def reshape(trace: Notes, axes: Axes, before: tuple[int, ...], after: tuple[int, ...]) -> Axes:
    """Returns the axes after a reshape, working on the smallest blocks of dimensions that keep their product."""
    result: list[Axis | None] = [None] * len(after)
    if math.prod(before) == 0:
        return tuple(result)
    for axis, size in zip(axes, before, strict=True):
        if size == 1:
            trace.pin(axis, "is reshaped with a single index left")
    for ins, outs in trace.choose(lambda: _blocks(before, after)):
        made = _reshape_block(trace, [(axes[dim], before[dim]) for dim in ins], [after[dim] for dim in outs])
        for dim, axis in zip(outs, made, strict=True):
            result[dim] = axis
    return tuple(result)


def _blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Returns [(dims before, dims after)] of equal product; dimensions of size 1 belong to none."""
    ins = [dim for dim, size in enumerate(before) if size != 1]
    outs = [dim for dim, size in enumerate(after) if size != 1]
    blocks = []
    while ins:
        block_in, block_out = [ins.pop(0)], [outs.pop(0)]
        size_in, size_out = before[block_in[0]], after[block_out[0]]
        while size_in != size_out:
            if size_in < size_out:
                block_in.append(ins.pop(0))
                size_in *= before[block_in[-1]]
            else:
                block_out.append(outs.pop(0))
                size_out *= after[block_out[-1]]
        blocks.append((block_in, block_out))
    return blocks


def _reshape_block(trace: Notes, ins: list[tuple[Axis | None, int]], outs: list[int]) -> list[Axis | None]:
    labelled = [(place, axis) for place, (axis, _) in enumerate(ins) if axis is not None]
    if not labelled or (len(ins) == 1 and len(outs) == 1):
        return [ins[0][0]] if labelled else [None] * len(outs)
    keep_place = trace.choose(lambda: max(labelled, key=lambda item: _weight(trace, item[1]))[0])
    keep = dict(labelled)[keep_place]
    sizes = [size for _, size in ins]
    too_large = math.prod(sizes) > _LARGEST_TABLE
    for place, axis in labelled:
        if too_large or place != keep_place:
            trace.pin(axis, "is merged with another dimension that could shrink")
    if too_large:
        return [None] * len(outs)
    column = [1] * len(ins)
    column[keep_place] = -1
    flat = np.broadcast_to(keep.labels.reshape(column), sizes).reshape(-1)
    return [Axis(flat, keep.zero)] if len(outs) == 1 else split(trace, flat.reshape(outs), keep.zero)


def _weight(trace: Notes, axis: Axis) -> tuple[bool, int]:
    """Orders axes by how much can be gained: those of parameters before those of constants, long before short."""
    return bool((axis.labels < trace.first_label).any()), len(axis.labels)


def split(trace: Notes, table: Labels, zero: bool) -> list[Axis | None]:
    """Says which of several new axes carries the labels that one axis had.

    Where they vary along one axis only, that one. Otherwise the block must stay rectangular: the longest axis (of equal
    ones the innermost) may shrink, coupled across the others; so heads stay and their width shrinks.
    """
    fronts = [np.moveaxis(table, place, -1).reshape(-1, size) for place, size in enumerate(table.shape)]
    innermost = isinstance(trace.module, nn.MultiheadAttention)

    def decide() -> int:
        for place, front in enumerate(fronts):
            if (front == front[0]).all():
                return place
        return max(range(len(fronts)), key=lambda place: (innermost or table.shape[place], place))

    chosen = trace.choose(decide)
    front = fronts[chosen]
    if not (front == front[0]).all():
        trace.couple(front)
    return [Axis(front[0], zero) if place == chosen else None for place in range(len(fronts))]


@rule("as_strided")
def as_strided(call: Call) -> Axes:
    """A change of memory layout alone passes (pooling in channels-last makes one); all else reads memory freely."""
    axes, out = call.axes("self"), call.outs[0]
    wide = [dim for dim, size in enumerate(out.shape) if size > 1]
    same = len(axes) == out.dim() and list(call["size"]) == list(out.shape)
    if same and not call["storage_offset"] and all(call.trace.strides[dim] == call["stride"][dim] for dim in wide):
        return axes
    for axis in axes:
        call.trace.pin(axis, "is read with strides of its own")
    return (None,) * out.dim()


@rule("permute")
def permute(call: Call) -> Axes:
    """Dimensions change places."""
    axes = call.axes("self")
    return tuple(axes[dim] for dim in call["dims"])


@rule("transpose t")
def transpose(call: Call) -> Axes:
    """Two dimensions change places; `t` swaps the only two."""
    axes = list(call.axes("self"))
    if len(axes) > 1:
        one, other = (call["dim0"], call["dim1"]) if call.has("dim0") else (-2, -1)
        axes[one], axes[other] = axes[other], axes[one]
    return tuple(axes)


@rule("unsqueeze")
def unsqueeze(call: Call) -> Axes:
    """A dimension of size 1 appears."""
    axes = list(call.axes("self"))
    dim = call["dim"] % (len(axes) + 1)
    return (*axes[:dim], None, *axes[dim:])


@rule("squeeze")
def squeeze(call: Call) -> Axes:
    """Dimensions of size 1 disappear."""
    shape, axes = call["self"].shape, call.axes("self")
    named = call["dim"] if call.has("dim") else None
    dims = range(len(shape)) if named is None else [named] if isinstance(named, int) else named
    gone = {dim % max(len(shape), 1) for dim in dims if shape[dim] == 1} if len(shape) else set()
    for dim in gone:
        call.trace.pin(axes[dim], "is squeezed away with a single index left")
    return tuple(axis for dim, axis in enumerate(axes) if dim not in gone)


@rule("expand")
def expand(call: Call) -> Axes:
    """Dimensions of size 1 and new ones in front grow; they hold the same value at every index."""
    out, shape, axes = call.outs[0], call["self"].shape, call.axes("self")
    lead = out.dim() - len(axes)
    grows = call.trace.choose(lambda: [dim < lead or shape[dim - lead] != size for dim, size in enumerate(out.shape)])
    return tuple(call.trace.new_axis(size) if grows[dim] else axes[dim - lead] for dim, size in enumerate(out.shape))


@rule("repeat")
def repeat(call: Call) -> Axes:
    """Copies follow each other, so labels do; copies of a single value are alike."""
    axes, out = call.axes("self"), call.outs[0]
    times = call["repeats" if call.has("repeats") else "dims"]
    lead, padded = out.dim() - len(axes), [1] * (out.dim() - len(times)) + list(times)
    alike = call.trace.choose(lambda: [dim < lead or call["self"].shape[dim - lead] == 1 for dim in range(out.dim())])
    result = [call.trace.new_axis(size) if alike[dim] else axes[dim - lead] for dim, size in enumerate(out.shape)]
    return tuple(axis if alike[dim] or axis is None else axis.take(np.tile(np.arange(len(axis.labels)), padded[dim]))
                 for dim, axis in enumerate(result))  # fmt: skip


# -- parts -------------------------------------------------------------------------------------------------------------


@rule("slice")
def slice_(call: Call) -> Axes:
    """Part of a dimension; equal parts couple, since `x[:, :width // 2]` must still halve what is left."""
    axes = list(call.axes("self"))
    dim = call["dim"] % len(axes)
    axis = axes[dim]
    if axis is None:
        return tuple(axes)
    size = len(axis.labels)
    step = call["step"] if call.has("step") else 1
    start, stop, _ = slice(call["start"], call["end"] if call.has("end") else call["start"] + call["length"]).indices(
        size
    )
    part = axis.labels[start:stop:step]
    if call.trace.choose(lambda: step == 1 and 0 < len(part) < size and size % len(part) == 0 == start % len(part)):
        call.trace.couple(axis.labels.reshape(-1, len(part)))
    axes[dim] = Axis(part, axis.zero) if call.trace.choose(lambda: len(part) > 1) else None
    if axes[dim] is None:
        lone(call, axis)
    return tuple(axes)


def lone(call: Call, axis: Axis | None) -> None:
    call.trace.pin(axis, "a single position of it is picked")


@rule("select unbind")
def positions(call: Call) -> list[Axes]:
    """One position, or each by itself, named by a number that would mean another channel once some are gone."""
    axes = call.axes("self")
    dim = call["dim"] % len(axes)
    lone(call, axes[dim])
    return [axes[:dim] + axes[dim + 1 :] for _ in call.outs]


@rule("split split_with_sizes unsafe_split unsafe_split_with_sizes")
def split_parts(call: Call) -> list[Axes]:
    """Parts of equal size couple index by index; parts of unequal size are independent."""
    axes = call.axes("self")
    dim = call["dim"] % len(axes)
    axis = axes[dim]
    if axis is None:
        return [axes for _ in call.outs]
    ends = np.cumsum([out.shape[dim] for out in call.outs])
    parts = np.split(axis.labels, ends[:-1])
    if call.trace.choose(lambda: len({len(part) for part in parts}) == 1 and len(parts) > 1):
        call.trace.couple(np.stack(parts))
    return [(*axes[:dim], Axis(part, axis.zero), *axes[dim + 1 :]) for part in parts]


@rule("glu")
def glu(call: Call) -> Axes:
    """The second half gates the first."""
    axes = list(call.axes("self"))
    dim = call["dim"] % len(axes)
    axis = axes[dim]
    if axis is not None:
        halves = axis.labels.reshape(2, -1)
        call.trace.couple(halves)
        axes[dim] = Axis(halves[0], axis.zero)
    return tuple(axes)


# -- places along a dimension -----------------------------------------------------------------------------------------


@rule("flip")
def flip(call: Call) -> Axes:
    """Labels run backwards."""
    axes = list(call.axes("self"))
    for dim in call["dims"]:
        axis = axes[dim]
        axes[dim] = axis and axis.take(slice(None, None, -1))
    return tuple(axes)


@rule("roll")
def roll(call: Call) -> Axes:
    """A shift by a fixed number of channels would land elsewhere once some are gone."""
    axes = call.axes("self")
    for dim in call["dims"] or range(len(axes)):
        call.trace.pin(axes[dim], "roll along channels")
    return tuple(None if dim in [d % len(axes) for d in call["dims"] or range(len(axes))] else axis
                 for dim, axis in enumerate(axes))  # fmt: skip


# -- positions that mean something -------------------------------------------------------------------------------------


@rule("triu tril diagonal diag_embed")
def triangle(call: Call) -> Axes:
    """Positions along the last two dimensions mean something."""
    axes = call.axes("self")
    for axis in axes[-2:]:
        call.trace.pin(axis, f"{call.name.split('.')[1]} works along it")
    return (*axes[:-2], *(None,) * (call.outs[0].dim() - len(axes) + 2))


@rule("view_as_real")
def view_as_real(call: Call) -> Axes:
    """A dimension for real and imaginary part appears."""
    return (*call.axes("self"), None)


@rule("view_as_complex")
def view_as_complex(call: Call) -> Axes:
    """Pairs become complex numbers."""
    axes = call.axes("self")
    call.trace.pin(axes[-1], "holds real and imaginary parts")
    return axes[:-1]
