"""Rules for what runs along a dimension: sums, means, softmax, sorting."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pruning.trace.call import Call
from pruning.trace.labels import Axes, Info, with_zero
from pruning.trace.rules.pointwise import pointwise
from pruning.trace.rules.table import Kind, kind_of, rule


def dims_of(call: Call, argument: str, rank: int) -> list[int]:
    """Returns dimensions named by an int, a list, or None for all of them, as non-negative numbers."""
    value = call.get(argument)
    if value is None or value == []:
        return list(range(rank))
    dims = value if isinstance(value, (list, tuple)) else [value]
    return [dim % max(rank, 1) for dim in dims]


def without(axes: Axes, gone: list[int], keepdim: bool) -> Axes:
    """Returns the axes after a reduction over some dimensions."""
    if keepdim:
        return tuple(None if dim in gone else axis for dim, axis in enumerate(axes))
    return tuple(axis for dim, axis in enumerate(axes) if dim not in gone)


@rule("sum nansum norm linalg_vector_norm count_nonzero", kind=Kind.SUMS)
@rule("mean amax amin var std var_mean std_mean logsumexp prod any all max min median aminmax argmax argmin")
def reduction(call: Call) -> list[Any]:
    """Removed zeros leave a sum or a norm as it is and change every other statistic.

    For global pooling, squeeze-and-excitation, RMS norms and other norms written by hand.
    """
    if isinstance(call.get("other"), Tensor):  # max(x, y) works element by element
        return pointwise(call)
    axes = call.axes("self")
    gone = dims_of(call, "dim", len(axes))
    points = []  # labels of the dimensions that an argmax gives positions along
    for dim in gone:
        axis = axes[dim]
        if axis is None:
            continue
        points.append(axis.labels)
        if axis.zero and Kind.SUMS in kind_of(call.name):
            call.trace.consume(axis)
        else:
            call.trace.lose(axis, f"{call.base_name} over a dimension that shrinks")

    left = without(axes, gone, bool(call.get("keepdim", False)))
    zero_of_zeros = call.base_name not in ("argmax", "argmin", "logsumexp")
    values = tuple(axis if zero_of_zeros else with_zero(axis, False) for axis in left)
    positions = Info(values, points_at=tuple(points))
    if call.name in ("aten.argmax", "aten.argmin"):
        return [positions]
    if call.name in ("aten.max", "aten.min", "aten.median") and len(call.outs) == 2:
        return [values, positions]
    return [values for _ in call.outs]


@rule("_softmax _log_softmax _safe_softmax")
def softmax(call: Call) -> Axes:
    """Every value depends on all others along the dimension. For attention, and for routers over channels."""
    axes = call.axes("self")
    dim = call.dim(len(axes))
    others = [axis for place, axis in enumerate(axes) if place != dim and axis is not None]
    if axes[dim] is None and len(others) == 1:  # scores of tokens by head, however they were made
        call.trace.batched(others[0])
    call.trace.lose(axes[dim], "softmax over a dimension that shrinks")
    return tuple(with_zero(axis, False) for axis in axes)


@rule("cumsum cumprod logcumsumexp")
def running(call: Call) -> Axes:
    """A running sum passes removed zeros by; a running product does not. For scans of state-space models."""
    axes = list(call.axes("self"))
    dim = call.dim(len(axes))
    axis = axes[dim]
    if axis is not None:
        exact = axis.zero and call.name == "aten.cumsum"
        if not exact:
            call.trace.lose(axis, f"{call.base_name} along a dimension that shrinks")
    axes[dim] = with_zero(axis, False)  # after a removed channel stands the sum of those before it
    return tuple(axes)


@rule("sort topk cummax cummin kthvalue mode _fft_r2c _fft_c2r _fft_c2c unfold renorm linalg_cross")
def mixes(call: Call) -> list[Axes]:
    """Positions along the dimension mean something: it must stay, the other dimensions pass.

    For routers of experts (topk), Fourier layers (FNet) and windows cut by `unfold`.
    """
    axes = call.axes("self")
    argument = "dimension" if call.has("dimension") else "dim"
    mixed = dims_of(call, argument, len(axes))
    for dim in mixed:
        call.trace.pin(axes[dim], f"{call.base_name} along it")
    passed = without(axes, mixed, keepdim=True)
    passed = tuple(with_zero(axis, False) for axis in passed)
    found = []
    for out in call.outs:
        more = out.dim() - len(axes)
        if more >= 0:  # unfold adds a dimension for the places in a window
            found.append(passed + (None,) * more)
        else:  # kthvalue and mode take one away
            found.append(without(passed, mixed, keepdim=False))
    return found
