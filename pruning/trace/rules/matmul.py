"""Rules for products of matrices, and the biases added to them."""

from __future__ import annotations

from torch import Tensor

from pruning.trace.call import Call
from pruning.trace.labels import CONSUMER, PRODUCER, Axes, Axis, kept
from pruning.trace.rules.table import rule

# -- matrix products ---------------------------------------------------------------------------------------------------


def contract(call: Call, one: Axis | None, other: Axis | None) -> None:
    """A sum of products over two axes: a removed index leaves it as it was if either factor vanishes there."""
    call.trace.tie(one, other, "is multiplied with a dimension of fixed size")
    for axis in (one, other):
        call.trace.consume(axis)
        if axis is not None:
            call.trace.entry.summed.append(axis.labels)
    if one is not None and other is not None and not (one.zero or other.zero):
        call.trace.lose(one, "a sum of products over a dimension that shrinks, of values that do not vanish")


def product(call: Call, left: Tensor, right: Tensor) -> Axes:
    """(..., n, k) @ (..., k, m): k couples, n and m are handed on, leading dimensions couple."""
    trace, one, other = call.trace, call.trace.axes(left), call.trace.axes(right)
    contract(call, one[-1], other[-2])
    if trace.is_weight(left):
        trace.mark(one[-2], PRODUCER)
        trace.mark(one[-1], CONSUMER)
    if trace.is_weight(right):
        trace.mark(other[-2], CONSUMER)
        trace.mark(other[-1], PRODUCER)
    return (*(_shared(call, a, b) for a, b in zip(one[:-2], other[:-2], strict=True)), one[-2], other[-1])


def _shared(call: Call, one: Axis | None, other: Axis | None) -> Axis | None:
    call.trace.tie(one, other)
    return None if one is None or other is None else kept(one, one.zero or other.zero)


def add_bias(call: Call, axes: Axes, bias: Tensor) -> Axes:
    """Adds a tensor that is broadcast from the right."""
    own = call.trace.axes(bias)
    result = list(axes)
    for place in range(1, len(axes) + 1):
        axis, added = axes[-place], own[-place] if place <= len(own) else None
        there = place <= len(own) and bias.shape[-place] == call.outs[0].shape[-place]
        if there:
            call.trace.tie(axis, added)
        if call.trace.is_weight(bias):
            call.trace.mark(added, PRODUCER)
        result[-place] = axis and kept(axis, axis.zero and there and added is not None and added.zero)
    return tuple(result)


@rule("mm bmm dot vdot mv")
def matmul(call: Call) -> Axes:
    """Products of matrices and vectors."""
    left, right = (tensor for tensor in call.tensors()[:2])
    if min(left.dim(), right.dim()) >= 2:
        return product(call, left, right)
    one, other = call.trace.axes(left), call.trace.axes(right)
    contract(call, one[-1], other[-1] if right.dim() == 1 else other[-2])
    if call.trace.is_weight(left) and left.dim() > 1:
        call.trace.mark(one[-2], PRODUCER)
        call.trace.mark(one[-1], CONSUMER)
    return one[:-1] + (() if right.dim() == 1 else (*other[:-2], other[-1]))


@rule("addmm baddbmm addmv addbmm")
def addmm(call: Call) -> Axes:
    """A product and a bias."""
    _, left, right = call.tensors()[:3]
    if right.dim() == 1:
        one, other = call.trace.axes(left), call.trace.axes(right)
        contract(call, one[-1], other[0])
        return add_bias(call, one[:-1], call["self"])
    result = product(call, left, right)
    return add_bias(call, result if len(result) == call.outs[0].dim() else result[1:], call["self"])


@rule("_cdist_forward _euclidean_dist")
def distances(call: Call) -> Axes:
    """Lengths of differences: a removed index leaves them as they were if both vectors vanish there."""
    trace, one, other = call.trace, call.axes("x1"), call.axes("x2")
    trace.tie(one[-1], other[-1])
    trace.consume(one[-1])
    if one[-1] is not None and not (one[-1].zero and other[-1] is not None and other[-1].zero):
        trace.lose(one[-1], "a distance along a dimension that shrinks")
    lead = (_shared(call, a, b) for a, b in zip(one[:-2], other[:-2], strict=True))
    return tuple(axis and kept(axis, False) for axis in (*lead, one[-2], other[-2]))


@rule("_trilinear")
def trilinear(call: Call) -> Axes:
    """The sum that nn.Bilinear is made of: operands aligned by inserted dimensions, multiplied, summed."""
    rank = call["i1"].dim() + len(call["expand1"])
    rows = [_with_gaps(call.axes(f"i{number}"), call[f"expand{number}"], rank) for number in (1, 2, 3)]
    result: list[Axis | None] = []
    for dim in range(rank):
        axes = [row[dim] for number, row in enumerate(rows, 1) if dim not in call[f"expand{number}"]]
        first = next((axis for axis in axes if axis is not None), None)
        for axis in axes if first is not None else ():
            call.trace.tie(first, axis)
        if dim in call["sumdim"]:
            call.trace.consume(first)
            call.trace.mark(rows[1][dim], CONSUMER)
        else:
            call.trace.mark(rows[1][dim], PRODUCER)
            result.append(first)
    return tuple(result)


def _with_gaps(axes: Axes, gaps: list[int], rank: int) -> Axes:
    left = iter(axes)
    return tuple(None if dim in gaps else next(left) for dim in range(rank))
