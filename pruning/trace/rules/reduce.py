"""Rules for what runs along a dimension: sums, means, softmax, sorting."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pruning.trace.call import Call
from pruning.trace.labels import Axes, Info, kept
from pruning.trace.rules.pointwise import _base_name, pointwise
from pruning.trace.rules.table import rule

# -- along a dimension -------------------------------------------------------------------------------------------------


def dims_of(call: Call, argument: str, rank: int) -> list[int]:
    """Returns dimensions named by an int, a list, or None for all of them, as non-negative numbers."""
    value = call[argument] if call.has(argument) else None
    if value is None or value == []:
        return list(range(rank))
    return [dim % max(rank, 1) for dim in (value if isinstance(value, (list, tuple)) else [value])]


def without(axes: Axes, gone: list[int], keepdim: bool) -> Axes:
    """Returns the axes after a reduction over some dimensions."""
    if keepdim:
        return tuple(None if dim in gone else axis for dim, axis in enumerate(axes))
    return tuple(axis for dim, axis in enumerate(axes) if dim not in gone)


_EXACT_SUMS = frozenset(["aten.sum", "aten.linalg_vector_norm", "aten.norm", "aten.nansum", "aten.count_nonzero"])


@rule(
    "sum nansum mean amax amin var std var_mean std_mean logsumexp norm prod any all linalg_vector_norm max min median "
    "aminmax argmax argmin count_nonzero"
)
def reduction(call: Call) -> list[Any]:
    """Removed zeros leave a sum or a norm as it is and change every other statistic."""
    name = call.name
    axes, second = call.axes("self"), call["other"] if call.has("other") else None
    if isinstance(second, Tensor):
        return [pointwise(call)]
    gone = dims_of(call, "dim", len(axes))
    points = []
    for dim in gone:
        axis = axes[dim]
        if axis is None:
            continue
        points.append(axis.labels)
        if axis.zero and name in _EXACT_SUMS:
            call.trace.consume(axis)
        else:
            call.trace.lose(axis, f"{_base_name(call)} over a dimension that shrinks")
    left = without(axes, gone, bool(call["keepdim"]) if call.has("keepdim") else False)
    keeps = name not in ("aten.argmax", "aten.argmin", "aten.logsumexp")
    values = tuple(kept(axis, keeps and axis is not None and axis.zero) for axis in left)
    if name in ("aten.argmax", "aten.argmin"):
        return [Info(values, points_at=tuple(points))]
    if name in ("aten.max", "aten.min", "aten.median") and len(call.outs) == 2:
        return [values, Info(values, points_at=tuple(points))]
    return [values for _ in call.outs]


@rule("_softmax _log_softmax _safe_softmax")
def softmax(call: Call) -> Axes:
    """Every value depends on all others along the dimension."""
    axes = call.axes("self")
    dim = call["dim"] % max(len(axes), 1)
    call.trace.lose(axes[dim], "softmax over a dimension that shrinks")
    return tuple(kept(axis, False) for axis in axes)


@rule("cumsum cumprod logcumsumexp")
def running(call: Call) -> Axes:
    """A running sum passes removed zeros by; a running product does not."""
    axes = call.axes("self")
    dim = call["dim"] % max(len(axes), 1)
    axis = axes[dim]
    if axis is not None and not (axis.zero and call.name == "aten.cumsum"):
        call.trace.lose(axis, f"{_base_name(call)} along a dimension that shrinks")
    return tuple(kept(other, other is not None and other.zero and place != dim) for place, other in enumerate(axes))


@rule("sort topk cummax cummin kthvalue mode _fft_r2c _fft_c2r _fft_c2c unfold renorm linalg_cross")
def mixes(call: Call) -> list[Axes]:
    """Positions along the dimension mean something: it must stay, the other dimensions pass."""
    axes = call.axes("self")
    named = "dimension" if call.has("dimension") else "dim"
    mixed = dims_of(call, named, len(axes))
    for dim in mixed:
        call.trace.pin(axes[dim], f"{_base_name(call)} along it")
    passed = tuple(None if dim in mixed else kept(axis, False) for dim, axis in enumerate(axes))
    return [passed + (None,) * (out.dim() - len(passed)) if out.dim() >= len(passed) else without(axes, mixed, False)
            for out in call.outs]  # fmt: skip
