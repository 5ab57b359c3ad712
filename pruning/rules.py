"""The table: operation -> how labels pass through it.

A rule gets a `Call` and returns the axes of the output, one `Axis` or None per dimension; a list of such tuples where
the operation has several outputs. On the way it says what it knows through `call.trace`: `tie`, `pin`, `lose`
(removal changes a statistic), `consume` (values are used up here), `mark` (a weight's role). An operation without a
rule pins what it touches. A rule of your own:

    def my_rule(call):                                # mylib.scale_rows(x, weight): x of (batch, channels)
        x, weight = call.axes("x"), call.axes("weight")
        call.trace.tie(x[1], weight[0])
        return x

    register_rule(torch.ops.mylib.scale_rows, my_rule)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pruning.errors import UsageError
from pruning.labels import Axes, Axis, Call, Info

Rule = Callable[[Call], Any]

RULES: dict[str, Rule] = {}


def rule(names: str) -> Callable[[Rule], Rule]:
    """Enters a function under these names of ATen operations; variants in place and those that copy come along."""

    def enter(function: Rule) -> Rule:
        for name in names.split():
            RULES.update(dict.fromkeys((f"aten.{name}", f"aten.{name}_", f"aten.{name}_copy"), function))
        return function

    return enter


def register_rule(op: Any, rule: Rule) -> None:
    """Teaches the graph an operation of your own; takes effect for graphs built afterwards.

    Args:
        op: `torch.ops.mylib.op`, one of its overloads, or its name "mylib.op".
        rule: function of a `Call` that returns the output's axes; see the head of this file.

    Raises:
        UsageError: if `op` names no operation or the rule cannot be called.
    """
    name = op if isinstance(op, str) else str(getattr(op, "overloadpacket", op))
    if not callable(rule) or name.count(".") != 1 or " " in name:
        raise UsageError(f"register_rule needs torch.ops.<library>.<op> and a function, not {op!r} and {rule!r}.")
    RULES[name] = rule


def kept(axis: Axis | None, zero: bool) -> Axis | None:
    """Returns the axis with another promise about its zeros."""
    return axis and Axis(axis.labels, zero)


# -- element by element ------------------------------------------------------------------------------------------------

# f(0) = 0, or f(0, 0) = 0 where all tensors are zero. Whatever is missing here costs an "inexact", never an error.
_ZERO_NAMES = (
    "relu hardtanh leaky_relu elu celu gelu silu mish hardswish tanh hardshrink softshrink sin tan asin atan sinh "
    "asinh atanh erf sqrt abs neg sgn sign floor ceil round trunc frac expm1 log1p clone _to_copy detach alias "
    "lift_fresh lift native_dropout _prelu_kernel add sub rsub maximum minimum fmax fmin copy rrelu_with_noise "
    "nan_to_num zero _conj _fused_dropout _to_dense lerp hypot complex"
)
_KEEPS_ZERO = frozenset(_ZERO_NAMES.split())


def _base_name(call: Call) -> str:
    return call.name.split(".")[1].rstrip("_")


def _stays_zero(call: Call, axes: list[Axis | None], covered: bool) -> bool:
    """Says whether zero operands give a zero result; `covered`: none of them is broadcast along the axis."""
    name = _base_name(call)
    zeros = [axis is not None and axis.zero for axis in axes]
    if name in ("mul", "masked_fill"):
        return any(zeros) and (name == "mul" or call["value"] == 0)
    if name in ("div", "true_divide", "floor_divide", "bernoulli"):
        return bool(zeros) and zeros[0] and axes[0] is not None and call.axes("self")[-1:] != ()
    if name == "pow":
        return all(zeros) and isinstance(call["exponent"], (int, float)) and call["exponent"] > 0
    if name == "clamp":
        low, high = call["min"], call["max"]
        return all(zeros) and (low is None or low <= 0) and (high is None or high >= 0)
    if name == "fill":
        return call["value"] == 0 if not isinstance(call["value"], Tensor) else False
    if name == "where":
        return covered and len(zeros) > 1 and all(zeros[-2:])
    offset = any(isinstance(value, (int, float)) and value != 0 for value in call.args[1:2])
    return name in _KEEPS_ZERO and covered and all(zeros) and not (offset and name in ("add", "sub", "rsub"))


def _aligned(call: Call, tensor: Tensor, dim: int, rank: int) -> tuple[int, Axis | None]:
    """Returns the (size, axis) of a tensor along a dimension of the broadcast result; size 0 where it has none."""
    own = dim - (rank - tensor.dim())
    return (0, None) if own < 0 else (tensor.shape[own], call.trace.axes(tensor)[own])


@rule(
    f"{_ZERO_NAMES} hardsigmoid softplus threshold masked_fill where fill bernoulli log_sigmoid_forward normal uniform "
    "polar"
)
def pointwise(call: Call) -> Axes | list[Axes]:
    """Operands couple index by index; a dimension of size 1 is broadcast and couples nothing."""
    out = call.outs[0]
    tensors = [tensor for tensor in call.tensors() if tensor.dim()]
    axes = tuple(_joined(call, [_aligned(call, tensor, dim, out.dim()) for tensor in tensors], dim)
                 for dim in range(out.dim()))  # fmt: skip
    return [axes if other.shape == out.shape else (None,) * other.dim() for other in call.outs]


RULES["pointwise"] = pointwise


def _joined(call: Call, operands: list[tuple[int, Axis | None]], dim: int) -> Axis | None:
    size = call.outs[0].shape[dim]
    full = [axis for width, axis in operands if width == size]
    for width, axis in operands:
        if width != size:
            call.trace.pin(axis, "is broadcast")
    first = next((axis for axis in full if axis is not None), None)
    if first is None:
        return None
    for axis in full:
        if axis is not first:
            call.trace.tie(first, axis)
    fixed = any(axis is None for axis in full)
    return None if fixed else Axis(first.labels, _stays_zero(call, full, len(full) == len(operands)))


# -- values that stem from nothing -------------------------------------------------------------------------------------


@rule("zeros new_zeros empty new_empty empty_strided new_empty_strided empty_permuted ones new_ones full new_full rand "
      "randn normal_functional")  # fmt: skip
def made_anew(call: Call) -> list[Axes]:
    """Alike at every index, so that only the size matters, and the rehearsal watches sizes.

    Empty tensors wait to be written to; writing says what they hold.
    """
    zero = "zeros" in call.name or "empty" in call.name
    return [tuple(call.trace.fresh(size, zero=zero) for size in out.shape) for out in call.outs]


@rule("zeros_like empty_like ones_like full_like rand_like randn_like randint_like")
def made_alike(call: Call) -> Axes:
    """Takes the shape of another tensor, so its labels too."""
    return tuple(kept(axis, call.name in ("aten.zeros_like", "aten.empty_like")) for axis in call.axes("self"))


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
