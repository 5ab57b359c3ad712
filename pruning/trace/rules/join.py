"""Rules for what makes one tensor of several: concatenations, stacks, padding."""

from __future__ import annotations

import numpy as np

from pruning.trace.call import Call, Notes
from pruning.trace.labels import Axes, Axis
from pruning.trace.rules.table import rule


@rule("cat")
def cat(call: Call) -> Axes:
    """Labels follow each other; all other dimensions couple. For DenseNet, Inception, U-Nets and class tokens."""
    out = call.outs[0]
    dim = call["dim"] % out.dim()
    # torch allows tensors of shape (0,) among others of any rank.
    tensors = [tensor for tensor in call["tensors"] if tensor.dim() == out.dim()]
    rows = [call.trace.axes(tensor) for tensor in tensors]
    result: list[Axis | None] = []
    for place in range(out.dim()):
        along = [row[place] for row in rows]
        if place == dim:  # the only one along which sizes may differ
            sizes = [tensor.shape[dim] for tensor in tensors]
            result.append(_appended(call, along, sizes))
        else:
            result.append(couple_all(call, along))
    return tuple(result)


def couple_all(call: Call, axes: list[Axis | None]) -> Axis | None:
    """Couples one dimension of several tensors, index by index; None where any of them cannot shrink."""
    first = next((axis for axis in axes if axis is not None), None)
    if first is None:
        return None
    for axis in axes:
        call.trace.tie(first, axis)
    zero = True  # zeros joined to anything else are no zeros
    for axis in axes:
        if axis is None or len(axis.labels) != len(first.labels):
            return None
        zero = zero and axis.zero
    return Axis(first.labels, zero)


def _appended(call: Call, axes: list[Axis | None], sizes: list[int]) -> Axis | None:
    """Puts axes of these sizes one after the other; those that cannot shrink get labels that stay."""
    if all(axis is None for axis in axes):
        return None
    parts = []
    for axis, size in zip(axes, sizes, strict=True):
        if axis is None:
            axis = _fixed(call.trace, size, "is joined to channels")
        parts.append(axis)
    labels = np.concatenate([part.labels for part in parts])
    return Axis(labels, all(part.zero for part in parts))


def _fixed(trace: Notes, size: int, why: str) -> Axis:
    """Returns new labels that must stay: they hold the places of what no parameter made."""
    axis = Axis(trace.new_labels(size), False)
    trace.pin(axis, why)
    return axis


@rule("stack")
def stack(call: Call) -> Axes:
    """A new dimension whose length is the number of tensors; all others couple. For steps of recurrent networks."""
    rows = [call.trace.axes(tensor) for tensor in call["tensors"]]
    joined = []
    for along in zip(*rows, strict=True):  # the same dimension of every tensor
        joined.append(couple_all(call, list(along)))
    dim = call["dim"] % (len(joined) + 1)
    return (*joined[:dim], None, *joined[dim:])


@rule("constant_pad_nd")
def constant_pad(call: Call) -> Axes:
    """Padding along channels adds positions that must stay, so that the rest keeps its place.

    For shortcuts of ResNets without a convolution (option A of He et al. 2016), and for sides of pictures.
    """
    trace = call.trace
    axes = list(call.axes("self"))
    pad = call["pad"]  # (before, after) of the last dimension first
    for place in range(len(pad) // 2):
        dim = len(axes) - 1 - place
        before, after = pad[2 * place : 2 * place + 2]
        axis = axes[dim]
        if axis is None or before == after == 0:
            continue
        if before < 0 or after < 0:
            trace.pin(axis, "is cropped by a negative padding")
        first = max(-before, 0)
        last = len(axis.labels) - max(-after, 0)
        inner = axis.labels[first:last]
        front = _fixed(trace, max(before, 0), "channels added by padding")
        back = _fixed(trace, max(after, 0), "channels added by padding")
        labels = np.concatenate([front.labels, inner, back.labels])
        stays_zero = axis.zero and not call["value"]
        axes[dim] = Axis(labels, stays_zero)
    return tuple(axes)
