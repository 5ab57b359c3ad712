"""Rules for what happens element by element, and for values that stem from nothing."""

from __future__ import annotations

from torch import Tensor

from pruning.trace.call import Call
from pruning.trace.labels import Axes, Axis, kept
from pruning.trace.rules.table import RULES, rule

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
    return [tuple(call.trace.new_axis(size, zero=zero) for size in out.shape) for out in call.outs]


@rule("zeros_like empty_like ones_like full_like rand_like randn_like randint_like")
def made_alike(call: Call) -> Axes:
    """Takes the shape of another tensor, so its labels too."""
    return tuple(kept(axis, call.name in ("aten.zeros_like", "aten.empty_like")) for axis in call.axes("self"))
