"""Shapes of results, found by shorter ways than torch's own where those are slow.

Torch finds the shapes of some operations by running their decomposition in Python, at a millisecond each; a network has
hundreds. Each function here returns None where it does not apply, and errors are left to torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _like(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.shape) if tensor.is_contiguous() else torch.empty_like(tensor)


def _batch_normalised(*args: Any, **_: Any) -> Any:
    if args[3] is None:
        return None
    return _like(args[0]), _like(args[3]), _like(args[3])


def _batch_normalised_no_update(*args: Any, **_: Any) -> Any:
    return _like(args[0]), args[0].new_empty(0), args[0].new_empty(0)


def _layer_normalised(*args: Any, **_: Any) -> Any:
    x, shape, weight = args[0], args[1], args[2]
    lead = x.shape[: x.dim() - len(shape)]
    if list(x.shape[len(lead) :]) != list(shape) or (weight is not None and list(weight.shape) != list(shape)):
        return None
    statistics = x.new_empty((*lead, *(1 for _ in shape)))
    return x.new_empty(x.shape), statistics, torch.empty_like(statistics)


def _added_product(*args: Any, **_: Any) -> Any:
    bias, left, right = args[:3]
    fits = left.dim() == right.dim() == 2 and left.shape[1] == right.shape[0] and bias.shape == right.shape[1:]
    return left.new_empty((left.shape[0], right.shape[1])) if fits else None


def _pointwise(*args: Any, **_: Any) -> Any:
    first, other = args[0], args[1] if len(args) > 1 else None
    if not isinstance(first, Tensor) or not first.is_floating_point() or isinstance(other, complex):
        return None
    if not isinstance(other, Tensor) or other.shape == first.shape:
        return _like(first) if not isinstance(other, Tensor) or other.dtype == first.dtype else None
    fits = other.dtype == first.dtype and other.dim() == first.dim() and other.is_contiguous() and first.is_contiguous()
    sizes = list(zip(first.shape, other.shape, strict=False))
    if not fits or any(one != two and 1 not in (one, two) for one, two in sizes):
        return None
    return first.new_empty([two if one == 1 else one for one, two in sizes])


def _in_place(*args: Any, **_: Any) -> Any:
    found = _pointwise(*args)
    return args[0] if found is not None and found.shape == args[0].shape else None


_POINTWISE = ("add", "sub", "mul", "div", "gelu", "silu", "sigmoid", "tanh", "relu", "hardswish", "hardsigmoid")

_AS_FIRST = ("aten.roll", "aten._softmax", "aten._safe_softmax")

_SHAPES: dict[str, Any] = {
    "aten.native_batch_norm": _batch_normalised,
    "aten._native_batch_norm_legit_no_training": _batch_normalised_no_update,
    "aten.native_layer_norm": _layer_normalised,
    "aten.addmm": _added_product,
    **dict.fromkeys((*_AS_FIRST, *(f"aten.{name}" for name in _POINTWISE)), _pointwise),
    **dict.fromkeys((f"aten.{name}_" for name in _POINTWISE), _in_place),
}


def compute(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Runs an operation, or finds its result's shape by a shorter way where stand-ins without data allow one."""
    shorter = _SHAPES.get(name)
    if shorter is not None and not kwargs and all(item.is_meta for item in args if isinstance(item, Tensor)):
        found = shorter(*args)
        if found is not None:
            return found
    return func(*args, **kwargs)
