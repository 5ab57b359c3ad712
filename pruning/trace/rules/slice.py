"""Rules for parts of a dimension and for places along it that mean something: slices, halves, shifts, triangles."""

from __future__ import annotations

import functools
import operator

import numpy as np

from pruning.trace.call import Call
from pruning.trace.labels import Axes, Axis, Info, leaving
from pruning.trace.rules.table import Kind, rule

# -- parts -------------------------------------------------------------------------------------------------------------


@rule("slice", kind=Kind.MOVES)
def slice_(call: Call) -> Info:
    """Part of a dimension; equal parts couple, since what halved a width must still halve what is left of it.

    Where the code says the bounds in integers with origins, equations decide (pruning/trace/sizes.py). For channel
    splits (ShuffleNet), rotary embeddings (Llama) and windows of tokens.
    """
    trace = call.trace
    axes = list(call.axes("self"))
    dim = call.dim(len(axes))
    axis = axes[dim]
    if axis is None:
        return Info(tuple(axes))
    size, step = len(axis.labels), call["step"]
    start, stop, _ = slice(call["start"], call["end"]).indices(size)
    part = axis.labels[start:stop:step]

    def is_one_of_equal_parts() -> bool:
        if trace.sizes_are_read or step != 1 or not 1 < len(part) < size:
            return False
        return size % len(part) == 0 and start % len(part) == 0

    if trace.choose(is_one_of_equal_parts):
        trace.couple(axis.labels.reshape(-1, len(part)))
    # A part of one index is a position picked, not a width; one of none picks nothing.
    if trace.choose(lambda: len(part) > 1):
        axes[dim] = Axis(part, axis.zero)
        return Info(tuple(axes))
    axes[dim] = None
    if trace.choose(lambda: len(part) == 0):
        return Info(tuple(axes))
    return Info(tuple(axes), picked_from=(axis.labels,))


@rule("select unbind", kind=Kind.MOVES)
def positions(call: Call) -> list[Info]:
    """One position, or each by itself: the class token of a ViT, the steps of a recurrent network.

    Once its values are used, the dimension must stay: with others gone, its number would mean another.
    """
    axes = call.axes("self")
    dim = call.dim(len(axes))
    axis = axes[dim]
    rest = axes[:dim] + axes[dim + 1 :]
    picked_from = () if axis is None else (axis.labels,)
    return [Info(rest, picked_from=picked_from) for _ in call.outs]


@rule("split split_with_sizes unsafe_split unsafe_split_with_sizes", kind=Kind.MOVES)
def split_parts(call: Call) -> list[Axes]:
    """Parts of equal size couple index by index; parts of unequal size are independent.

    Where each size is an integer with an origin, equations decide. For queries, keys and values in one projection, the
    gates of recurrent cells, and `chunk`.
    """
    trace = call.trace
    axes = call.axes("self")
    dim = call.dim(len(axes))
    axis = axes[dim]
    if axis is None:
        return [axes for _ in call.outs]
    ends = np.cumsum([out.shape[dim] for out in call.outs])
    parts = np.split(axis.labels, ends[:-1])

    def are_equal() -> bool:
        sizes = {len(part) for part in parts}
        return not trace.sizes_are_read and len(parts) > 1 and len(sizes) == 1

    if trace.choose(are_equal):
        trace.couple(np.stack(parts))  # code that chunks must find equal parts again
    before, after = axes[:dim], axes[dim + 1 :]
    return [(*before, Axis(part, axis.zero), *after) for part in parts]


@rule("glu")
def glu(call: Call) -> Axes:
    """The second half gates the first. For gated convolutions and the feed-forward layers of some transformers."""
    axes = list(call.axes("self"))
    dim = call.dim(len(axes))
    axis = axes[dim]
    if axis is not None:
        halves = axis.labels.reshape(2, -1)
        call.trace.couple(halves)
        axes[dim] = Axis(halves[0], axis.zero)
    return tuple(axes)


# -- places along a dimension ------------------------------------------------------------------------------------------


@rule("flip")
def flip(call: Call) -> Axes:
    """Labels run backwards. For recurrent networks that read in both directions."""
    axes = list(call.axes("self"))
    for dim in call["dims"]:
        axis = axes[dim]
        if axis is not None:
            axes[dim] = axis.take(slice(None, None, -1))
    return tuple(axes)


@rule("roll")
def roll(call: Call) -> Axes:
    """Shifts channels by a number of places; those that leave at one end come in at the other.

    If the number is fixed, as many must leave as before, so these stay; all others may go, since the rest keeps its
    order. Where the number has an origin, equations decide. For Swin's shifted windows, and shifts of channels.
    """
    trace = call.trace
    axes = list(call.axes("self"))
    if not call["dims"]:  # all values in one row are shifted
        for axis in axes:
            trace.pin(axis, "all values are rolled in one row")
        return (None,) * len(axes)
    for shift, dim in zip(call["shifts"], call["dims"], strict=True):
        axis = axes[dim]
        if axis is None or shift == 0:
            continue
        size = len(axis.labels)
        if trace.choose(functools.partial(operator.ge, abs(shift), size)):
            trace.pin(axis, "is rolled by more places than it has")
        elif not trace.choose(lambda: trace.sizes_are_read):
            trace.pin(Axis(leaving(axis.labels, shift)), "is rolled from one end to the other")
        axes[dim] = Axis(np.roll(axis.labels, shift), axis.zero)
    return tuple(axes)


@rule("triu tril diagonal diag_embed")
def triangle(call: Call) -> Axes:
    """Positions along the last two dimensions mean something. For causal masks and covariance matrices."""
    axes = call.axes("self")
    for axis in axes[-2:]:
        call.trace.pin(axis, f"{call.base_name} works along it")
    lead = axes[:-2]
    more = call.outs[0].dim() - len(lead)  # 1 after a diagonal, 3 where one is put on a matrix
    return lead + (None,) * more


# -- complex numbers: rotary embeddings written with them (Llama's first code), Fourier layers -------------------------


@rule("view_as_real")
def view_as_real(call: Call) -> Axes:
    """A dimension for real and imaginary part appears."""
    return (*call.axes("self"), None)


@rule("view_as_complex")
def view_as_complex(call: Call) -> Axes:
    """Pairs become complex numbers, which lie at even places in memory: in a part of a tensor, if its rows are even."""
    axes = call.axes("self")
    part = call["self"]
    whole = part._base
    if whole is not None and whole.dim():
        row = call.trace.axes(whole)[-1]
        call.trace.align(row, 2)
        if row is not None:
            start = (part.storage_offset() - whole.storage_offset()) % len(row.labels)
            call.trace.align(row.take(slice(0, start)), 2)  # what stands before it in the row
    call.trace.pin(axes[-1], "holds real and imaginary parts")
    return axes[:-1]
