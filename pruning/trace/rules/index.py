"""Rules for what reads or writes places that another tensor names: indexing, gathering, scattering, sampling."""

from __future__ import annotations

from torch import Tensor

from pruning.trace.call import Call
from pruning.trace.labels import PRODUCER, Axes, Axis, kept
from pruning.trace.rules.join import same
from pruning.trace.rules.table import RULES, rule

# -- look-ups ----------------------------------------------------------------------------------------------------------


@rule("embedding _embedding_bag _embedding_bag_forward_only")
def embedding(call: Call) -> list[Axes]:
    """Rows are chosen by the input, so they stay; columns are channels."""
    rows, columns = call.axes("weight")
    call.trace.pin(rows, "is looked up by the input")
    for axis in call.axes("indices"):
        call.trace.pin(axis, "is used to look up")
    if call.trace.is_weight(call["weight"]):
        call.trace.mark(columns, PRODUCER)
    if call["weight"].shape[1] == 1:
        columns = None
    return [(None,) * (call.outs[0].dim() - 1) + (columns,)]


def _named(call: Call, indices: list[Tensor | None]) -> list[int]:
    """Returns the dimensions that `x[indices]` names; a mask names as many as it has."""
    places: list[int] = []
    at = 0
    for tensor in indices:
        width = 1 if tensor is None or tensor.dtype.is_signed else tensor.dim()
        places += [] if tensor is None else range(at, at + width)
        at += width
        for axis in call.trace.axes(tensor) if tensor is not None else ():
            call.trace.pin(axis, "indexes another tensor")
    return places


def _picked(call: Call) -> list[int | None]:
    """Returns the dimension behind each one of `x[indices]`, and pins those that are named.

    Where they are neighbours, the result stands in their place, else in front.
    """
    axes, places = call.axes("self"), _named(call, call["indices"])
    for dim in places:
        call.trace.pin(axes[dim], "is indexed by a tensor")
    rest = [dim for dim in range(len(axes)) if dim not in places]
    tensors = [tensor for tensor in call["indices"] if tensor is not None]
    masks = any(not tensor.dtype.is_signed for tensor in tensors)
    new = 1 if masks else max(tensor.dim() for tensor in tensors)
    lead = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    return [*rest[:lead], *[None] * new, *rest[lead:]]


@rule("index _unsafe_index")
def index(call: Call) -> Axes:
    """x[:, table]: indexed dimensions must stay, the others pass."""
    axes = call.axes("self")
    return tuple(None if dim is None else axes[dim] for dim in _picked(call))


@rule("index_put _index_put_impl")
def index_put(call: Call) -> Axes:
    """x[table] = values: what is written couples with the dimensions that the table does not name."""
    axes, written, picked = call.axes("self"), call.axes("values"), _picked(call)
    result: list[Axis | None] = [None] * len(axes)
    for place, dim in enumerate(reversed(picked), 1):
        own = written[-place] if place <= len(written) else None
        axis = None if dim is None else axes[dim]
        if axis is None or dim is None:
            call.trace.pin(own, "is written to places of fixed number")
            continue
        if place <= len(written) and call["values"].shape[-place] == len(axis.labels):
            call.trace.tie(axis, own)
        result[dim] = kept(axis, axis.zero and own is not None and own.zero)
    return tuple(result)


@rule("index_select")
def index_select(call: Call) -> Axes:
    """The indexed dimension must stay."""
    axes = list(call.axes("self"))
    axes[_stays(call, axes)] = None
    return tuple(axes)


def _stays(call: Call, *rows: Axes | list[Axis | None]) -> int:
    """Pins the dimension that places are named along, in all these tensors, and returns it."""
    dim = call["dim"] % max(len(rows[0]), 1)
    for axes in rows:
        for axis in axes[dim : dim + 1]:
            call.trace.pin(axis, "is indexed by a tensor")
    return dim


@rule("index_add index_copy index_fill")
def index_write(call: Call) -> Axes:
    """x.index_add_(dim, table, source): all dimensions but the one named couple with the source's."""
    axes = call.axes("self")
    source = call.axes("source") if call.has("source") else tuple(kept(axis, call["value"] == 0) for axis in axes)
    dim = _stays(call, axes, source)
    return tuple(None if place == dim else same(call, list(pair))
                 for place, pair in enumerate(zip(axes, source, strict=True)))  # fmt: skip


# `index_copy` is no copying variant of `index`, whatever its name says.
RULES["aten.index_copy"] = RULES["aten.index_copy_"] = index_write


@rule("gather")
def gather(call: Call) -> Axes:
    """y[i, j] = x[i, table[i, j]]: dimensions that the table has in full couple with it."""
    axes, table = call.axes("self"), call.axes("index")
    dim = _stays(call, axes, table)
    return tuple(None if place == dim else _along(call, [axes[place], table[place]], [axes[place]])
                 for place in range(len(axes)))  # fmt: skip


@rule("scatter scatter_add scatter_reduce")
def scatter(call: Call) -> Axes:
    """x[i, table[i, j]] = y[i, j]: the same the other way round."""
    axes, table = call.axes("self"), call.axes("index")
    source = call.axes("src") if call.has("src") else tuple(kept(axis, call["value"] == 0) for axis in axes)
    dim = _stays(call, axes, table, source)
    return tuple(None if place == dim else _along(call, [axes[place], table[place], source[place]],
                                                  [axes[place], source[place]])
                 for place in range(len(axes)))  # fmt: skip


def _along(call: Call, axes: list[Axis | None], values: list[Axis | None]) -> Axis | None:
    """Couples a dimension of several tensors; it vanishes where those that hold values do."""
    joined = same(call, axes)
    return joined and kept(joined, all(axis is not None and axis.zero for axis in values))


@rule("_pack_padded_sequence")
def packed(call: Call) -> list[Axes]:
    """Sequences of several lengths become one row of steps."""
    axes = call.axes("input")
    for axis in axes[:2]:
        call.trace.pin(axis, "is packed")
    return [(None, *axes[2:])]


@rule("grid_sampler_2d grid_sampler_3d cudnn_grid_sampler")
def grid_sampler(call: Call) -> Axes:
    """A picture is looked at where a grid says: channels pass."""
    return _sampled(call, call.axes("input" if call.has("input") else "self"), call.axes("grid"))


def roi_align(call: Call) -> Axes:
    """Boxes cut out of a picture: channels pass."""
    return (None, *_sampled(call, call.axes("input"), call.axes("rois"))[1:])


def _sampled(call: Call, axes: Axes, places: Axes) -> Axes:
    for axis in (*axes[2:], *places):
        call.trace.pin(axis, "says where a picture is looked at")
    return (*axes[:2], *[None] * (call.outs[0].dim() - 2))


RULES.update({"torchvision.roi_align": roi_align, "torchvision.roi_pool": roi_align})
