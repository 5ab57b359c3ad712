"""Rules for products of matrices, and the biases added to them.

They tell which part the slices of a weight play: those that are summed over are CONSUMER, the others PRODUCER.
"""

from __future__ import annotations

from torch import Tensor

from pruning.trace.call import Call
from pruning.trace.labels import CONSUMER, PRODUCER, Axes, Axis, with_zero
from pruning.trace.rules.table import RULES, Kind, rule

# -- what products share -----------------------------------------------------------------------------------------------


def contract(call: Call, one: Axis | None, other: Axis | None) -> None:
    """A sum of products over two axes: a removed index leaves it as it was if either factor vanishes there."""
    trace = call.trace
    trace.tie(one, other, "is multiplied with a dimension of fixed size")
    for axis in (one, other):
        trace.consume(axis)
        if axis is not None:
            trace.entry.summed.append(axis.labels)
    if one is not None and other is not None:
        vanishes = one.zero or other.zero
        if not vanishes:
            trace.lose(one, "a sum of products over a dimension that shrinks, of values that do not vanish")


def couple_factors(call: Call, one: Axis | None, other: Axis | None) -> Axis | None:
    """Couples a dimension that two factors have in common; a product vanishes where either factor does."""
    call.trace.tie(one, other)
    if one is None or other is None:
        return None
    return with_zero(one, one.zero or other.zero)


def couple_batches(call: Call, one: Axes, other: Axes) -> list[Axis | None]:
    """Couples all dimensions before the last two, which are those of a matrix."""
    pairs = zip(one[:-2], other[:-2], strict=True)
    return [couple_factors(call, of_one, of_other) for of_one, of_other in pairs]


def product(call: Call, left: Tensor, right: Tensor) -> Axes:
    """(..., n, k) @ (..., k, m): k couples, n and m are handed on, leading dimensions couple."""
    trace = call.trace
    one, other = trace.axes(left), trace.axes(right)
    contract(call, one[-1], other[-2])
    # In x @ w.T the weight stands on the right, in attention neither side is one.
    if trace.is_weight(left):
        trace.mark(one[-2], PRODUCER)
        trace.mark(one[-1], CONSUMER)
    if trace.is_weight(right):
        trace.mark(other[-2], CONSUMER)
        trace.mark(other[-1], PRODUCER)
    if not (trace.is_plain(left) or trace.is_plain(right)):
        for axis in (*one[:-2], *other[:-2]):
            trace.batched(axis)
    batch = couple_batches(call, one, other)
    return (*batch, one[-2], other[-1])


def add_bias(call: Call, axes: Axes, bias: Tensor) -> Axes:
    """Adds a tensor that is broadcast from the right."""
    trace = call.trace
    own = trace.axes(bias)
    result = list(axes)
    for place in range(-1, -len(axes) - 1, -1):
        axis = axes[place]
        if -place > len(own):  # the bias has no such dimension
            result[place] = with_zero(axis, False)
            continue
        added = own[place]
        covers = bias.shape[place] == call.outs[0].shape[place]
        if covers:
            trace.tie(axis, added)
        if trace.is_weight(bias):
            trace.mark(added, PRODUCER)
        if axis is not None:
            both_vanish = axis.zero and covers and added is not None and added.zero
            result[place] = with_zero(axis, both_vanish)
    return tuple(result)


# -- products of matrices and vectors ----------------------------------------------------------------------------------


@rule("mm bmm", kind=Kind.MULTIPLIES)
@rule("dot vdot mv")
def matmul(call: Call) -> Axes:
    """Products without a bias: linear layers without one, attention step by step, spectral norm (mv, dot)."""
    trace = call.trace
    left, right = call.tensors()[:2]
    if min(left.dim(), right.dim()) >= 2:
        return product(call, left, right)
    one, other = trace.axes(left), trace.axes(right)
    contract(call, one[-1], other[0])  # (k) . (k) or (n, k) @ (k)
    if trace.is_weight(left) and left.dim() > 1:
        trace.mark(one[-2], PRODUCER)
        trace.mark(one[-1], CONSUMER)
    return one[:-1]


@rule("addmm baddbmm", kind=Kind.TAKES_NUMBERS)
@rule("addmv addbmm")
def addmm(call: Call) -> Axes:
    """A product and a bias: nn.Linear; attention with a mask added (baddbmm)."""
    trace = call.trace
    _, left, right = call.tensors()[:3]
    if right.dim() == 1:  # addmv
        one, other = trace.axes(left), trace.axes(right)
        contract(call, one[-1], other[0])
        return add_bias(call, one[:-1], call["self"])
    result = product(call, left, right)
    if len(result) > call.outs[0].dim():  # addbmm sums over the batch
        result = result[1:]
    return add_bias(call, result, call["self"])


# -- products by group -------------------------------------------------------------------------------------------------

_KERNEL_BYTES = 16  # rows of what the kernel multiplies start at multiples of this


@rule("_grouped_mm", kind=Kind.MULTIPLIES)
def grouped(call: Call) -> Axes:
    """Rows are sorted by expert, and those of each expert meet a matrix of its own. For mixtures of experts.

    Offsets say where the rows of the next expert start, so experts and rows stay; widths pass as in any product.
    """
    left, right = call.tensors()[:2]
    if left.dim() == right.dim() == 3:  # a group is an index of both, as in `bmm`
        result = product(call, left, right)
    elif right.dim() == 3:
        result = _rows_by_group(call, left, right)
    else:
        raise NotImplementedError("groups along the columns, or along what is summed over")
    for axis in (*call.trace.axes(left)[-2:], *call.trace.axes(right)[-2:]):
        call.trace.align(axis, _KERNEL_BYTES // left.element_size())
    bias = call.get("bias")
    return result if bias is None else add_bias(call, result, bias)


def _rows_by_group(call: Call, left: Tensor, right: Tensor) -> Axes:
    """(rows, k) @ (groups, k, m) -> (rows, m)"""
    trace = call.trace
    rows, width = trace.axes(left)
    groups, inner, outer = trace.axes(right)
    trace.pin(rows, "is shared out among experts")
    trace.pin(groups, "counts experts, which are chosen by number")
    contract(call, width, inner)
    if trace.is_weight(right):
        trace.mark(inner, CONSUMER)
        trace.mark(outer, PRODUCER)
    return (None, outer)


RULES["transformers.grouped_mm_fallback"] = grouped  # their own, where torch has no kernel


@rule("_cdist_forward _euclidean_dist")
def distances(call: Call) -> Axes:
    """Lengths of differences: a removed index leaves them as they were if both vectors vanish there.

    For prototype and radial-basis networks, and the code books of vector quantisation.
    """
    trace = call.trace
    one, other = call.axes("x1"), call.axes("x2")  # (..., n, k) and (..., m, k)
    trace.tie(one[-1], other[-1])
    trace.consume(one[-1])
    width, other_width = one[-1], other[-1]
    if width is not None:
        both_vanish = width.zero and other_width is not None and other_width.zero
        if not both_vanish:
            trace.lose(width, "a distance along a dimension that shrinks")
    batch = couple_batches(call, one, other)
    result = (*batch, one[-2], other[-2])  # (..., n, m): the distance of zeros is zero, of one zero it is not
    return tuple(with_zero(axis, False) for axis in result)


@rule("_trilinear")
def trilinear(call: Call) -> Axes:
    """The sum that nn.Bilinear is made of: operands aligned by inserted dimensions, multiplied, summed."""
    trace = call.trace
    rank = call["i1"].dim() + len(call["expand1"])
    operands = []  # (axes of an operand in the common rank, which of them were inserted)
    for number in (1, 2, 3):
        inserted = call[f"expand{number}"]
        operands.append((_with_gaps(call.axes(f"i{number}"), inserted, rank), inserted))
    weight, _ = operands[1]
    result: list[Axis | None] = []
    for dim in range(rank):
        axes = [own[dim] for own, inserted in operands if dim not in inserted]
        first = next((axis for axis in axes if axis is not None), None)
        if first is not None:
            for axis in axes:
                trace.tie(first, axis)
        if dim in call["sumdim"]:
            trace.consume(first)
            trace.mark(weight[dim], CONSUMER)
        else:
            trace.mark(weight[dim], PRODUCER)
            result.append(first)
    return tuple(result)


def _with_gaps(axes: Axes, gaps: list[int], rank: int) -> Axes:
    """Returns the axes with inserted dimensions at the places `gaps`."""
    left = iter(axes)
    return tuple(None if dim in gaps else next(left) for dim in range(rank))
