"""Rules for what happens element by element, and for values that stem from nothing.

Every network needs the first of them: activations, additions, masks. Operations that torch tags as pointwise come here
without being named; the names below add what a zero becomes, and operations without the tag.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pruning.trace.call import Call
from pruning.trace.labels import PRODUCER, Axes, Axis, with_zero
from pruning.trace.rules.table import RULES, Kind, kind_of, rule

# -- element by element ------------------------------------------------------------------------------------------------


# What is missing among those that keep zeros costs an "inexact", never an error.
@rule(
    "relu hardtanh leaky_relu elu celu gelu silu mish hardswish tanh hardshrink softshrink sin tan asin atan sinh "
    "asinh atanh erf sqrt abs sgn sign floor ceil round trunc frac expm1 log1p native_dropout _prelu_kernel add sub "
    "rsub maximum minimum fmax fmin copy rrelu_with_noise nan_to_num zero lift _conj _fused_dropout _to_dense lerp "
    "hypot complex",
    kind=Kind.KEEPS_ZERO,
)
@rule("clone _to_copy detach alias lift_fresh", kind=Kind.KEEPS_ZERO | Kind.MOVES | Kind.COPIES)
@rule("neg", kind=Kind.KEEPS_ZERO | Kind.SCALES)
@rule("mul div", kind=Kind.SCALES)
@rule("fill fill_", kind=Kind.TAKES_NUMBERS)
@rule("hardsigmoid softplus threshold masked_fill where bernoulli log_sigmoid_forward normal uniform polar")
def pointwise(call: Call) -> list[Axes]:
    """Operands couple index by index; a dimension of size 1 is broadcast and couples nothing."""
    out = call.outs[0]
    tensors = [tensor for tensor in call.tensors() if tensor.dim()]
    axes = []
    for dim in range(out.dim()):
        operands = [_aligned(call, tensor, dim - out.dim()) for tensor in tensors]
        axes.append(_joined(call, operands, out.shape[dim]))
    if call.base_name == "add" and len(tensors) == 2:
        _mark_bias(call, *tensors)
    result: list[Axes] = []
    for other in call.outs:
        if other.shape == out.shape:
            result.append(tuple(axes))
        else:  # something else, such as the state of a random generator
            result.append((None,) * other.dim())
    return result


def _mark_bias(call: Call, one: Tensor, other: Tensor) -> None:
    """What is added to a product makes its values together with the matrix, as in x @ matrix + bias."""
    trace = call.trace
    for product, bias in ((one, other), (other, one)):
        if trace.is_product(product) and trace.is_bias(bias):
            for axis in trace.axes(bias):
                trace.mark(axis, PRODUCER)


RULES["pointwise"] = pointwise  # of all that torch tags so


def _aligned(call: Call, tensor: Tensor, dim: int) -> tuple[int, Axis | None]:
    """Returns the (size, axis) of a tensor along a dimension counted from the right; size 0 where it has none."""
    if -dim > tensor.dim():
        return 0, None
    return tensor.shape[dim], call.trace.axes(tensor)[dim]


def _joined(call: Call, operands: list[tuple[int, Axis | None]], size: int) -> Axis | None:
    """Couples one dimension of all operands; None where any of them cannot shrink."""
    full = []
    for width, axis in operands:
        if width == size:
            full.append(axis)
        else:
            call.trace.pin(axis, "is broadcast")
    first = next((axis for axis in full if axis is not None), None)
    if first is None:
        return None
    # Tied to the first, all are tied to each other; one that cannot shrink pins the rest.
    for axis in full:
        if axis is not first:
            call.trace.tie(first, axis)
    if any(axis is None for axis in full):
        return None
    covered = len(full) == len(operands)
    return Axis(first.labels, _stays_zero(call, full, covered))


def _stays_zero(call: Call, axes: list[Axis | None], covered: bool) -> bool:
    """Says whether zero operands give a zero result.

    Args:
        call: the operation.
        axes: of the operands that are not broadcast along this dimension.
        covered: none of them is.
    """
    name = call.base_name
    zeros = [axis is not None and axis.zero for axis in axes]
    if name == "mul":
        return any(zeros)
    if name == "masked_fill":
        return any(zeros) and _is_number(call["value"], 0)
    if name in ("div", "true_divide", "floor_divide", "bernoulli"):
        has_dimensions = call.axes("self") != ()  # else the first operand is a number, and 1 / 0 is not 0
        return bool(zeros) and zeros[0] and has_dimensions
    if name == "pow":
        exponent = call["exponent"]
        return all(zeros) and isinstance(exponent, (int, float)) and exponent > 0
    if name == "clamp":
        low, high = call["min"], call["max"]
        if isinstance(low, Tensor) or isinstance(high, Tensor):
            return False  # whatever bound a tensor holds
        above_low = low is None or low <= 0
        below_high = high is None or high >= 0
        return all(zeros) and above_low and below_high
    if name == "fill":
        return _is_number(call["value"], 0)
    if name == "where":
        # The condition comes first, whatever it holds; then the two that are chosen from.
        return covered and len(zeros) > 1 and all(zeros[-2:])
    if name in ("add", "sub", "rsub") and _adds_a_number(call):
        return False
    keeps_zero = Kind.KEEPS_ZERO in kind_of(f"aten.{name}")
    return keeps_zero and covered and all(zeros)


def _is_number(value: Any, number: float) -> bool:
    return not isinstance(value, Tensor) and bool(value == number)


def _adds_a_number(call: Call) -> bool:
    if len(call.args) < 2:
        return False
    added = call.args[1]
    return isinstance(added, (int, float)) and added != 0


# -- values that stem from nothing -------------------------------------------------------------------------------------


@rule("new_zeros new_empty new_empty_strided new_ones", kind=Kind.MAKES)
@rule("new_full", kind=Kind.MAKES | Kind.TAKES_NUMBERS)
@rule("full", kind=Kind.TAKES_NUMBERS)
@rule("zeros empty empty_strided empty_permuted ones rand randn normal_functional")
def made_anew(call: Call) -> list[Axes]:
    """Alike at every index, so that only the size matters, and the dry run watches sizes.

    For states and masks that forward makes: hidden states of recurrent networks, class tokens, shortcuts padded with
    zeros. Empty tensors wait to be written to; writing says what they hold.
    """
    zero = "zeros" in call.name or "empty" in call.name
    (out,) = call.outs
    return [tuple(call.trace.new_axis(size, zero=zero) for size in out.shape)]


@rule("arange", kind=Kind.MAKES)
def counted(call: Call) -> list[Axes]:
    """Places along a width, where the code says the width; what is computed of them is compared by value.

    For sinusoids and frequencies that forward makes.
    """
    (out,) = call.outs
    follows = call.trace.choose(lambda: call.trace.sizes_are_read)
    return [(call.trace.new_axis(len(out)) if follows else None,)]


@rule("full_like", kind=Kind.TAKES_NUMBERS)
@rule("zeros_like empty_like ones_like rand_like randn_like randint_like")
def made_alike(call: Call) -> Axes:
    """Takes the shape of another tensor, so its labels too."""
    zero = call.name in ("aten.zeros_like", "aten.empty_like")
    return tuple(with_zero(axis, zero) for axis in call.axes("self"))
