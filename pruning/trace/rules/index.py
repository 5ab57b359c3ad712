"""Rules for what reads or writes places that another tensor names: indexing, gathering, scattering, sampling.

Which place is meant, a tensor of numbers says; with indices gone, the numbers would mean others. So the dimension that
they run along stays, and the others pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pruning.trace.call import Call
from pruning.trace.labels import PRODUCER, Axes, Axis, with_zero
from pruning.trace.rules.join import couple_all
from pruning.trace.rules.table import RULES, Kind, rule

# -- look-ups ----------------------------------------------------------------------------------------------------------


@rule("embedding _embedding_bag _embedding_bag_forward_only")
def embedding(call: Call) -> list[Axes]:
    """Rows are chosen by the input, so they stay; columns are channels. For every network that reads words."""
    trace = call.trace
    rows, columns = call.axes("weight")  # (words, channels)
    trace.pin(rows, "is looked up by the input")
    for axis in call.axes("indices"):
        trace.pin(axis, "is used to look up")
    if trace.is_weight(call["weight"]):
        trace.mark(columns, PRODUCER)
    if call["weight"].shape[1] == 1:
        columns = None
    lead = call.outs[0].dim() - 1
    return [(None,) * lead + (columns,)]


# -- x[table] ----------------------------------------------------------------------------------------------------------


@rule("index _unsafe_index", kind=Kind.PICKS)
def index(call: Call) -> Axes:
    """x[:, table]: indexed dimensions must stay, the others pass. For position biases (Swin) and last tokens."""
    axes = call.axes("self")
    picked = _picked(call)
    return tuple(None if dim is None else axes[dim] for dim in picked)


@rule("index_put _index_put_impl")
def index_put(call: Call) -> Axes:
    """x[table] = values: what is written couples with the dimensions that the table does not name.

    For experts that write their tokens back, and for caches.
    """
    trace = call.trace
    axes, written = call.axes("self"), call.axes("values")
    result: list[Axis | None] = [None] * len(axes)
    # From the right, for values are broadcast from there.
    for place, dim in enumerate(reversed(_picked(call)), 1):
        own = written[-place] if place <= len(written) else None
        axis = None if dim is None else axes[dim]
        if axis is None or dim is None:
            trace.pin(own, "is written to places of fixed number")
            continue
        if place <= len(written) and call["values"].shape[-place] == len(axis.labels):
            trace.tie(axis, own)
        both_zero = axis.zero and own is not None and own.zero
        result[dim] = with_zero(axis, both_zero)
    return tuple(result)


def _picked(call: Call) -> list[int | None]:
    """Returns the dimension behind each one of `x[indices]`, None behind new ones, and pins those that are named."""
    axes = call.axes("self")
    named = _named(call, call["indices"])
    for dim in named:
        call.trace.pin(axes[dim], "is indexed by a tensor")
    rest = [dim for dim in range(len(axes)) if dim not in named]
    tensors = [tensor for tensor in call["indices"] if tensor is not None]
    has_mask = any(_is_mask(tensor) for tensor in tensors)
    new = 1 if has_mask else max(tensor.dim() for tensor in tensors)
    # The new dimensions stand in the place of those named where these are neighbours, else in front.
    first, last = named[0], named[-1]
    are_neighbours = named == list(range(first, last + 1))
    lead = first if are_neighbours else 0
    picked: list[int | None] = list(rest)
    picked[lead:lead] = [None] * new
    return picked


def _named(call: Call, indices: list[Tensor | None]) -> list[int]:
    """Returns the dimensions that `x[indices]` names; a mask names as many as it has."""
    dims: list[int] = []
    at = 0
    for tensor in indices:
        if tensor is None:
            at += 1
            continue
        width = tensor.dim() if _is_mask(tensor) else 1
        dims += range(at, at + width)
        at += width
        for axis in call.trace.axes(tensor):
            call.trace.pin(axis, "indexes another tensor")
    return dims


def _is_mask(tensor: Tensor) -> bool:
    return not tensor.dtype.is_signed  # bool, or uint8 in old code


# -- places along one dimension ----------------------------------------------------------------------------------------


def _pin_named(call: Call, *rows: Sequence[Axis | None]) -> int:
    """Pins the dimension that places are named along, in all these tensors, and returns it."""
    dim = call.dim(len(rows[0]))
    for axes in rows:
        for axis in axes[dim : dim + 1]:  # a tensor of no dimension has none to pin
            call.trace.pin(axis, "is indexed by a tensor")
    return dim


def _source(call: Call, name: str) -> Axes:
    """Returns the axes of what is written, which may be a single number."""
    if call.has(name):
        return call.axes(name)
    writes_zeros = call["value"] == 0
    return tuple(with_zero(axis, writes_zeros) for axis in call.axes("self"))


@rule("index_select", kind=Kind.PICKS)
def index_select(call: Call) -> Axes:
    """The indexed dimension must stay. For graph networks, which look up the nodes of their edges."""
    axes = list(call.axes("self"))
    axes[_pin_named(call, axes)] = None
    return tuple(axes)


@rule("index_add index_copy index_fill")
def index_write(call: Call) -> Axes:
    """x.index_add_(dim, table, source): all dimensions but the one named couple with the source's.

    For experts that add their share to each token, and messages in graph networks.
    """
    axes, source = call.axes("self"), _source(call, "source")
    named = _pin_named(call, axes, source)
    result: list[Axis | None] = []
    for dim, (own, written) in enumerate(zip(axes, source, strict=True)):
        if dim == named:
            result.append(None)
        else:
            result.append(couple_all(call, [own, written]))
    return tuple(result)


# `index_copy` is no copying variant of `index`, whatever its name says.
RULES["aten.index_copy"] = RULES["aten.index_copy_"] = index_write


@rule("gather")
def gather(call: Call) -> Axes:
    """y[i, j] = x[i, table[i, j]]: all dimensions but the one named couple with the table's. For routers of experts."""
    axes, table = call.axes("self"), call.axes("index")
    named = _pin_named(call, axes, table)
    result: list[Axis | None] = []
    for dim, axis in enumerate(axes):
        if dim == named:
            result.append(None)
            continue
        joined = couple_all(call, [axis, table[dim]])
        result.append(with_zero(joined, axis is not None and axis.zero))
    return tuple(result)


@rule("scatter scatter_add scatter_reduce")
def scatter(call: Call) -> Axes:
    """x[i, table[i, j]] = y[i, j]: the same the other way round."""
    axes, table = call.axes("self"), call.axes("index")
    source = _source(call, "src")
    named = _pin_named(call, axes, table, source)
    result: list[Axis | None] = []
    for dim, axis in enumerate(axes):
        if dim == named:
            result.append(None)
            continue
        written = source[dim]
        joined = couple_all(call, [axis, table[dim], written])
        both_zero = axis is not None and axis.zero and written is not None and written.zero
        result.append(with_zero(joined, both_zero))
    return tuple(result)


@rule("_pack_padded_sequence")
def packed(call: Call) -> list[Axes]:
    """Sequences of several lengths become one row of steps. For recurrent networks."""
    axes = call.axes("input")  # (steps, batch, channels) or (batch, steps, channels)
    for axis in axes[:2]:
        call.trace.pin(axis, "is packed")
    return [(None, *axes[2:])]


# -- places in a picture -----------------------------------------------------------------------------------------------


@rule("grid_sampler_2d grid_sampler_3d cudnn_grid_sampler")
def grid_sampler(call: Call) -> Axes:
    """A picture is looked at where a grid says: channels pass. For spatial transformers and optical flow."""
    picture = call.axes("input") if call.has("input") else call.axes("self")
    return _sampled(call, picture, call.axes("grid"))


def roi_align(call: Call) -> Axes:
    """Boxes cut out of a picture: channels pass. For detectors in two stages (Faster R-CNN)."""
    passed = _sampled(call, call.axes("input"), call.axes("rois"))
    return (None, *passed[1:])  # one per box


RULES["torchvision.roi_align"] = RULES["torchvision.roi_pool"] = roi_align


def _sampled(call: Call, axes: Axes, places: Axes) -> Axes:
    for axis in (*axes[2:], *places):
        call.trace.pin(axis, "says where a picture is looked at")
    sides = call.outs[0].dim() - 2
    return axes[:2] + (None,) * sides
