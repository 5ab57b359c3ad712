"""Rules for what makes one tensor of several: concatenations, stacks, padding."""

from __future__ import annotations

import numpy as np

from pruning.trace.call import Call, Notes
from pruning.trace.labels import Axes, Axis
from pruning.trace.rules.table import rule


@rule("cat")
def cat(call: Call) -> Axes:
    """Labels follow each other; all other dimensions couple."""
    out, dim = call.outs[0], call["dim"]
    tensors = [tensor for tensor in call["tensors"] if tensor.dim() == out.dim()]
    dim %= out.dim()
    rows = [call.trace.axes(tensor) for tensor in tensors]
    joined = [same(call, [row[place] for row in rows]) if place != dim else None for place in range(out.dim())]
    if any(row[dim] is not None for row in rows):
        joined[dim] = _appended(
            call, [(row[dim], tensor.shape[dim]) for row, tensor in zip(rows, tensors, strict=True)]
        )
    return tuple(joined)


def same(call: Call, axes: list[Axis | None]) -> Axis | None:
    """Couples one dimension of several tensors, index by index; None where any of them cannot shrink."""
    first = next((axis for axis in axes if axis is not None), None)
    if first is None:
        return None
    for axis in axes:
        call.trace.tie(first, axis)
    fixed = any(axis is None or len(axis.labels) != len(first.labels) for axis in axes)
    return None if fixed else Axis(first.labels, all(axis is not None and axis.zero for axis in axes))


def _fixed(trace: Notes, size: int, why: str) -> Axis:
    axis = Axis(trace.new_labels(size), False)
    trace.pin(axis, why)
    return axis


def _appended(call: Call, parts: list[tuple[Axis | None, int]]) -> Axis:
    axes = [axis or _fixed(call.trace, size, "is joined to channels") for axis, size in parts]
    return Axis(np.concatenate([axis.labels for axis in axes]), all(axis.zero for axis in axes))


@rule("stack")
def stack(call: Call) -> Axes:
    """A new dimension whose length is the number of tensors; all others couple."""
    rows = [call.trace.axes(tensor) for tensor in call["tensors"]]
    joined = [same(call, [row[place] for row in rows]) for place in range(len(rows[0]))]
    dim = call["dim"] % (len(joined) + 1)
    return (*joined[:dim], None, *joined[dim:])


@rule("constant_pad_nd")
def constant_pad(call: Call) -> Axes:
    """Padding along channels adds positions that must stay, so that the rest keeps its place."""
    axes, pad = list(call.axes("self")), call["pad"]
    for place in range(len(pad) // 2):
        dim, before, after = len(axes) - 1 - place, pad[2 * place], pad[2 * place + 1]
        axis = axes[dim]
        if axis is None or not (before or after):
            continue
        if before < 0 or after < 0:
            call.trace.pin(axis, "is cropped by a negative padding")
        kept = axis.take(slice(max(-before, 0), len(axis.labels) - max(-after, 0)))
        ends = [_fixed(call.trace, max(size, 0), "channels added by padding") for size in (before, after)]
        axes[dim] = Axis(np.concatenate([ends[0].labels, kept.labels, ends[1].labels]), axis.zero and not call["value"])
    return tuple(axes)
