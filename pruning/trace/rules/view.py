"""Rules for what gives a tensor another shape or order without computing: views, permutations, copies along a side.

Transformers need nearly all of them, to split channels into heads and back; convolutional networks need the flatten
before their classifier.
"""

from __future__ import annotations

import math

import numpy as np
from torch import nn

from pruning.trace.call import Call, Notes
from pruning.trace.labels import Axes, Axis, Labels, Split
from pruning.trace.rules.table import Kind, rule

_LARGEST_TABLE = 20_000_000  # labels of a reshape that mixes dimensions; beyond it the dimensions stay


# -- other sizes -------------------------------------------------------------------------------------------------------


@rule("view _unsafe_view _reshape_alias", kind=Kind.MOVES | Kind.RESHAPES)
@rule("_reshape_copy")
def view(call: Call) -> Axes:
    """Splits and merges dimensions."""
    out = call.outs[0]
    if call.name == "aten.view" and out.dtype != call["self"].dtype:
        return reinterpreted(call)
    before, after = tuple(call["self"].shape), tuple(out.shape)
    return reshape(call.trace, call.axes("self"), before, after)


def reinterpreted(call: Call) -> Axes:
    """A view as another type of the same width keeps its shape; otherwise the last dimension must stay."""
    axes = call.axes("self")
    if call["self"].shape == call.outs[0].shape:
        return axes
    call.trace.pin(axes[-1], "is viewed as another type")
    return (*axes[:-1], None)


def reshape(trace: Notes, axes: Axes, before: tuple[int, ...], after: tuple[int, ...]) -> Axes:
    """Returns the axes after a reshape, working on the smallest blocks of dimensions that keep their product.

    Args:
        trace: where to note what is coupled and pinned.
        axes: of the dimensions before.
        before: the shape before.
        after: the shape afterwards.
    """
    result: list[Axis | None] = [None] * len(after)
    if math.prod(before) == 0:
        return tuple(result)
    for axis, size in zip(axes, before, strict=True):
        if size == 1:  # blocks leave them out, so nobody would follow their label
            trace.pin(axis, "is reshaped with a single index left")
    for number, (ins, outs) in enumerate(trace.choose(lambda: _blocks(before, after))):
        trace.block = number
        block_axes = [axes[dim] for dim in ins]
        old_sizes = [before[dim] for dim in ins]
        new_sizes = [after[dim] for dim in outs]
        known = len(trace.splits)
        made = _reshape_block(trace, block_axes, old_sizes, new_sizes)
        trace.splits[known:] = [split._replace(dims=tuple(outs)) for split in trace.splits[known:]]
        for dim, axis in zip(outs, made, strict=True):
            result[dim] = axis
    return tuple(result)


def _blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Returns [(dims before, dims after)] of equal product; dimensions of size 1 belong to none.

    (2, 3, 8) -> (6, 2, 4) has two blocks: (2, 3) -> (6) and (8) -> (2, 4).
    """
    ins = [dim for dim, size in enumerate(before) if size != 1]
    outs = [dim for dim, size in enumerate(after) if size != 1]
    blocks = []
    while ins:
        dim_in, dim_out = ins.pop(0), outs.pop(0)
        block_in, block_out = [dim_in], [dim_out]
        size_in, size_out = before[dim_in], after[dim_out]
        while size_in != size_out:  # the smaller side takes one more dimension
            if size_in < size_out:
                dim = ins.pop(0)
                block_in.append(dim)
                size_in *= before[dim]
            else:
                dim = outs.pop(0)
                block_out.append(dim)
                size_out *= after[dim]
        blocks.append((block_in, block_out))
    return blocks


def _reshape_block(
    trace: Notes, axes: list[Axis | None], old_sizes: list[int], new_sizes: list[int]
) -> list[Axis | None]:
    """Returns the new axes of one block. Of several dimensions that are merged, one may shrink; the others stay."""
    nothing: list[Axis | None] = [None] * len(new_sizes)
    labelled = {place: axis for place, axis in enumerate(axes) if axis is not None}
    if not labelled:
        return nothing
    if len(old_sizes) == 1 and len(new_sizes) == 1:  # untouched
        return list(axes)

    joined = trace.joined(axes, old_sizes) if len(labelled) > 1 else None
    if joined is not None:
        if len(new_sizes) == 1:
            return [joined]
        return split(trace, joined.labels.reshape(new_sizes), joined.zero)

    def most_gained() -> int:
        of_heads = trace.head_axis("in")
        if of_heads in labelled:
            return of_heads
        return max(labelled, key=lambda place: _gain(trace, labelled[place]))

    kept_place = trace.choose(most_gained)
    too_large = math.prod(old_sizes) > _LARGEST_TABLE
    for place, axis in labelled.items():
        if too_large or place != kept_place:
            trace.pin(axis, "is merged with another dimension that could shrink")
    if too_large:
        return nothing

    kept = labelled[kept_place]
    if kept_place == trace.head_axis("in"):
        trace.note_heads(kept.labels)
    shape = [1] * len(old_sizes)
    shape[kept_place] = -1
    table = np.broadcast_to(kept.labels.reshape(shape), old_sizes)  # the label behind every value
    flat = table.reshape(-1)
    if len(new_sizes) == 1:
        return [Axis(flat, kept.zero)]
    return split(trace, flat.reshape(new_sizes), kept.zero)


def _gain(trace: Notes, axis: Axis) -> tuple[bool, bool, int]:
    """Orders axes by what can go: whole heads, slices of parameters before constants, long before short."""
    of_parameters = bool((axis.labels < trace.first_label).any())
    return trace.is_of_heads(axis), of_parameters, len(axis.labels)


def split(trace: Notes, table: Labels, zero: bool) -> list[Axis | None]:
    """Says which of several new axes carries the labels that one axis had.

    Where they vary along one axis only, that one. Otherwise the block must stay rectangular: the longest axis (of equal
    ones the innermost) may shrink, coupled across the others; so heads stay and their width shrinks. Where heads are
    wanted whole, it is the axis that counts them.

    Args:
        trace: where to note what is coupled.
        table: the label behind every value, in the new shape.
        zero: as in `Axis`.
    """
    parted = trace.parted(table, zero)
    if parted is not None:
        return parted
    fronts = [front_of(table, place) for place in range(table.ndim)]
    prefer_innermost = isinstance(trace.module, nn.MultiheadAttention)  # its code fixes the number of heads

    def decide() -> int:
        for place, front in enumerate(fronts):
            if (front == front[0]).all():
                return place
        of_heads = trace.head_axis("out")
        if of_heads is not None:
            return of_heads
        places = range(len(fronts))
        if prefer_innermost:
            return places[-1]
        return max(places, key=lambda place: (table.shape[place], place))

    chosen = trace.choose(decide)
    front = fronts[chosen]
    varies_elsewhere = not (front == front[0]).all()
    if varies_elsewhere:
        trace.couple(front)
        trace.splits.append(Split(table, chosen, len(trace.entries), trace.entry.where))
    if chosen == trace.head_axis("out"):
        trace.note_heads(front[0])
    result: list[Axis | None] = [None] * len(fronts)
    result[chosen] = Axis(front[0], zero)
    return result


def front_of(table: Labels, place: int) -> Labels:
    """Returns one row per position along all other axes of a table, one column per index along one of them."""
    innermost = np.moveaxis(table, place, -1)
    return innermost.reshape(-1, table.shape[place])


@rule("as_strided")
def as_strided(call: Call) -> Axes:
    """A change of memory layout alone passes (pooling in channels-last makes one); all else reads memory freely."""
    axes, out = call.axes("self"), call.outs[0]
    before, after = call.trace.strides, call["stride"]
    same_rank = len(axes) == out.dim()
    same_shape = list(call["size"]) == list(out.shape)
    if same_rank and same_shape and not call["storage_offset"]:
        wide = [dim for dim, size in enumerate(out.shape) if size > 1]  # a single index has no step
        if all(before[dim] == after[dim] for dim in wide):
            return axes
    for axis in axes:
        call.trace.pin(axis, "is read with strides of its own")
    return (None,) * out.dim()


# -- another order -----------------------------------------------------------------------------------------------------


@rule("permute", kind=Kind.MOVES)
def permute(call: Call) -> Axes:
    """Dimensions change places."""
    axes = call.axes("self")
    return tuple(axes[dim] for dim in call["dims"])


@rule("transpose t", kind=Kind.MOVES)
def transpose(call: Call) -> Axes:
    """Two dimensions change places; `t` swaps the only two."""
    axes = list(call.axes("self"))
    if len(axes) < 2:
        return tuple(axes)
    one, other = -2, -1
    if call.has("dim0"):
        one, other = call["dim0"], call["dim1"]
    axes[one], axes[other] = axes[other], axes[one]
    return tuple(axes)


# -- dimensions of size 1 and what grows from them ---------------------------------------------------------------------


@rule("unsqueeze", kind=Kind.MOVES)
def unsqueeze(call: Call) -> Axes:
    """A dimension of size 1 appears."""
    axes = call.axes("self")
    dim = call["dim"] % (len(axes) + 1)
    return (*axes[:dim], None, *axes[dim:])


@rule("squeeze", kind=Kind.MOVES)
def squeeze(call: Call) -> Axes:
    """Dimensions of size 1 disappear."""
    shape, axes = call["self"].shape, call.axes("self")
    if not axes:
        return ()
    named = call.get("dim")
    if named is None:
        named = range(len(shape))
    elif isinstance(named, int):
        named = [named]
    gone = {dim % len(shape) for dim in named if shape[dim] == 1}
    for dim in gone:
        call.trace.pin(axes[dim], "is squeezed away with a single index left")
    return tuple(axis for dim, axis in enumerate(axes) if dim not in gone)


@rule("expand", kind=Kind.MOVES | Kind.MAKES)
def expand(call: Call) -> Axes:
    """Dimensions of size 1 and new ones in front grow; they hold the same value at every index."""
    out, shape = call.outs[0], call["self"].shape
    axes = call.axes("self")
    lead = out.dim() - len(axes)  # how many are new

    def growing() -> list[bool]:
        old_sizes = [None] * lead + list(shape)
        return [old != new for old, new in zip(old_sizes, out.shape, strict=True)]

    grows = call.trace.choose(growing)
    result: list[Axis | None] = []
    for dim, size in enumerate(out.shape):
        if grows[dim]:
            result.append(call.trace.new_axis(size))
        else:
            result.append(axes[dim - lead])
    return tuple(result)


@rule("repeat", kind=Kind.MAKES)
def repeat(call: Call) -> Axes:
    """Copies follow each other, so labels do; copies of a single value are alike."""
    out, shape = call.outs[0], call["self"].shape
    axes = call.axes("self")
    lead = out.dim() - len(axes)

    def alike() -> list[bool]:
        old_sizes = [1] * lead + list(shape)
        return [size == 1 for size in old_sizes]

    of_one_value = call.trace.choose(alike)
    result: list[Axis | None] = []
    for dim, times in enumerate(call["repeats"]):
        if of_one_value[dim]:
            result.append(call.trace.new_axis(out.shape[dim]))
            continue
        axis = axes[dim - lead]
        result.append(None if axis is None else axis.tiled(times))
    return tuple(result)
