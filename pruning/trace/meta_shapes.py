"""Shapes of results, found by shorter ways than torch's own where those are slow.

Torch finds the shapes of some operations by running their decomposition in Python, at a millisecond each; a network has
hundreds. Each function here returns None where it does not apply, and errors are left to torch. Building a graph takes
1.7 times as long without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def compute(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Runs an operation, or finds its result's shape by a shorter way where stand-ins without data allow one."""
    shorter = _SHAPES.get(name)
    if shorter is not None and not kwargs:
        without_data = all(item.is_meta for item in args if isinstance(item, Tensor))
        found = shorter(*args) if without_data else None
        if found is not None:
            return found
    return func(*args, **kwargs)


def _like(tensor: Tensor) -> Tensor | None:
    """Returns a result of a tensor's shape, its dimensions in the same order in memory; None if that is not clear."""
    if tensor.is_contiguous():
        return tensor.new_empty(tensor.shape)  # cheaper than what keeps the layout
    strides = _dense_strides(tensor)
    if strides is None:
        return None
    return tensor.new_empty_strided(tensor.shape, strides)


def _dense_strides(tensor: Tensor) -> list[int] | None:
    """Returns strides without gaps in the order of a tensor's own; None where that order is not clear."""
    strides = [0] * tensor.dim()
    below = 1
    stride_before = 0  # that of what is expanded, too
    for stride, size, dim in sorted(zip(tensor.stride(), tensor.shape, range(tensor.dim()), strict=True)):
        strides[dim] = below
        if size == 1:
            continue
        if stride == stride_before:
            return None
        stride_before = stride
        below *= size
    return strides


# -- normalisations ----------------------------------------------------------------------------------------------------


def _batch_norm(x: Tensor, weight: Any, bias: Any, running_mean: Any, *_: Any) -> Any:
    """Returns what is normalised, and mean and spread of every channel."""
    if running_mean is None:
        return None
    normalised = _like(x)
    if normalised is None:
        return None
    return normalised, torch.empty_like(running_mean), torch.empty_like(running_mean)


def _batch_norm_no_training(x: Tensor, *_: Any) -> Any:
    normalised = _like(x)
    return None if normalised is None else (normalised, x.new_empty(0), x.new_empty(0))


def _layer_norm(x: Tensor, shape: Any, weight: Any, *_: Any) -> Any:
    lead = x.shape[: x.dim() - len(shape)]
    normalised = list(x.shape[len(lead) :])
    if normalised != list(shape):
        return None
    if weight is not None and list(weight.shape) != list(shape):
        return None
    ones = [1] * len(shape)
    mean = x.new_empty((*lead, *ones))
    return x.new_empty(x.shape), mean, torch.empty_like(mean)


# -- products ----------------------------------------------------------------------------------------------------------


def _addmm(bias: Tensor, left: Tensor, right: Tensor, *_: Any) -> Any:
    """(n, k) @ (k, m) + (m)"""
    if left.dim() != 2 or right.dim() != 2:
        return None
    if left.shape[1] != right.shape[0] or bias.shape != right.shape[1:]:
        return None
    return left.new_empty((left.shape[0], right.shape[1]))


def _grouped(rows: Tensor, matrices: Tensor, *_: Any) -> Any:
    """(rows, k) by (groups, k, m); torch itself takes stand-ins in bfloat16 alone."""
    if rows.dim() != 2 or matrices.dim() != 3 or rows.shape[1] != matrices.shape[1]:
        return None
    return rows.new_empty((rows.shape[0], matrices.shape[2]))


# -- element by element ------------------------------------------------------------------------------------------------


def _pointwise(first: Any, *rest: Any) -> Any:
    if not isinstance(first, Tensor) or not first.is_floating_point():
        return None
    other = rest[0] if rest else None
    if isinstance(other, complex):
        return None
    if not isinstance(other, Tensor):
        return _like(first)
    if other.dtype != first.dtype:  # torch knows which of the two types wins
        return None
    if other.shape == first.shape:
        return _like(first)
    return _broadcast(first, other)


def _broadcast(first: Tensor, other: Tensor) -> Any:
    shape = _broadcast_shape(first.shape, other.shape)
    if shape is None:
        return None
    if first.is_contiguous() and other.is_contiguous():
        return first.new_empty(shape)
    # The first operand decides how the result lies in memory, as long as it says so for every dimension.
    return _like(first) if list(first.shape) == shape else None


def _broadcast_shape(one: Sequence[int], other: Sequence[int]) -> list[int] | None:
    """Returns the shape of two operands together; None where they don't fit."""
    longest = max(len(one), len(other))
    padded_one = [1] * (longest - len(one)) + list(one)
    padded_other = [1] * (longest - len(other)) + list(other)
    shape = []
    for left, right in zip(padded_one, padded_other, strict=True):
        if left != right and left != 1 and right != 1:
            return None
        shape.append(right if left == 1 else left)
    return shape


def _in_place(first: Any, *rest: Any) -> Any:
    found = _pointwise(first, *rest)
    if found is None or found.shape != first.shape:
        return None
    return first


# -- over dimensions, and side by side ---------------------------------------------------------------------------------


def _mean(x: Tensor, dims: Any = None, keepdim: bool = False) -> Any:
    if not dims or not x.is_floating_point():
        return None
    reduced = {dim % x.dim() for dim in dims} if x.dim() else set()
    if not reduced:
        return None
    if keepdim:
        return x.new_empty([1 if dim in reduced else size for dim, size in enumerate(x.shape)])
    return x.new_empty([size for dim, size in enumerate(x.shape) if dim not in reduced])


def _cat(tensors: Any, dim: int = 0) -> Any:
    first = tensors[0]
    dim = dim % first.dim() if first.dim() else 0
    total = 0
    for tensor in tensors:
        # Channels that lie closest together stay so; torch knows when.
        may_be_channels_last = tensor.dim() in (4, 5) and tensor.stride(1) == 1
        is_like_first = tensor.dim() == first.dim() and tensor.dtype == first.dtype and tensor.is_meta
        if not is_like_first or not tensor.dim() or may_be_channels_last:
            return None
        others = [size for place, size in enumerate(tensor.shape) if place != dim]
        if others != [size for place, size in enumerate(first.shape) if place != dim]:
            return None
        total += tensor.shape[dim]
    shape = list(first.shape)
    shape[dim] = total
    return first.new_empty(shape)


# -- the table ---------------------------------------------------------------------------------------------------------

_SHAPES: dict[str, Any] = {
    "aten.native_batch_norm": _batch_norm,
    "aten._native_batch_norm_legit_no_training": _batch_norm_no_training,
    "aten.native_layer_norm": _layer_norm,
    "aten.addmm": _addmm,
    "aten._grouped_mm": _grouped,
    "aten.mean": _mean,
    "aten.cat": _cat,
    "aten.roll": _pointwise,  # the shape of its first operand, whatever it does
    "aten._softmax": _pointwise,
    "aten._safe_softmax": _pointwise,
}

_OF_TWO = ("add", "sub", "mul", "div", "pow")
_OF_ONE = ("gelu", "silu", "sigmoid", "tanh", "relu", "hardswish", "hardsigmoid", "neg", "rsqrt", "sqrt", "exp", "abs")

for _name in _OF_TWO + _OF_ONE:
    _SHAPES[f"aten.{_name}"] = _pointwise
    _SHAPES[f"aten.{_name}_"] = _in_place
