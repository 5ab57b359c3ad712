"""Factors that depend on a width, such as attention's 1 / sqrt(head width), moved into the rows of a weight.

When heads get narrower, code that takes the factor from the width multiplies by another number than before. If what it
multiplies is, up to moves and products, the output of one layer that reaches nobody by another way, the rows of that
layer can take up the ratio, and the network computes what it did. `Rows` follows such outputs through a trace.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.trace.call import Call
from pruning.trace.labels import Rows

_KEEPS = frozenset(f"aten.{name}" for name in ("clone", "_to_copy", "detach", "alias", "lift_fresh"))

_VIEWS = frozenset(f"aten.{name}" for name in ("view", "_unsafe_view", "_reshape_alias"))

_MOVES = _KEEPS | _VIEWS | frozenset(
    f"aten.{name}" for name in ("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "t", "unbind",
                                "transpose", "permute", "unsqueeze", "squeeze", "expand", "select", "slice")
)  # fmt: skip

_FACTORS = frozenset(("aten.mul", "aten.div", "aten.neg"))  # and attention in one piece, of its first operand

_PRODUCTS = frozenset(("aten.bmm", "aten.mm"))


def is_move(name: str) -> bool:
    """Says whether an operation hands values on as they are."""
    return name in _MOVES


def made_by(call: Call, place: int) -> Rows | None:
    """Returns the rows behind the output of a layer whose weight and bias are parameters as they stand.

    Args:
        call: any operation.
        place: its number in the run.
    """
    tensors = call.tensors()
    # operation -> (place of the weight and its dimension of rows, place of the bias)
    operands = {"aten.addmm": (2, 1, 0), "aten.mm": (1, 1, None), "aten.convolution": (1, 0, 2)}.get(call.name)
    if operands is None or (call.name == "aten.convolution" and call["transposed"]):
        return None
    trace, weight = call.trace, tensors[operands[0]]
    axis = trace.axes(weight)[operands[1]]
    bias = tensors[operands[2]] if operands[2] is not None and operands[2] < len(tensors) else None
    if axis is None or not trace.is_plain(weight) or any(trace.is_weight(other) for other in tensors
                                                         if other is not weight and other is not bias):  # fmt: skip
        return None
    if bias is not None:
        added = trace.axes(bias)[-1]
        if added is None or bias.dim() != 1 or not trace.is_plain(bias):
            return None
        trace.bias_of[axis.labels] = added.labels
    out, dim = call.outs[0], 1 if call.name == "aten.convolution" else -1
    shape = [1] * out.dim()
    shape[dim] = -1
    return Rows(torch.from_numpy(axis.labels).view(shape).expand(out.shape), (place,))


def handed_on(call: Call, rows: Rows, place: int) -> list[Rows | None]:
    """Returns the rows behind each output of an operation that reads a tensor with rows; `place` is its number."""
    if is_move(call.name):
        mixed = rows.table.dim() != call.args[0].dim()
        return [Rows(part, rows.path) for part in ([rows.table] * len(call.outs) if mixed else _moved(call, rows))]
    numbers = [value for value in call.args[1:] if not isinstance(value, Tensor) or value.dim() == 0]
    if call.name in _FACTORS and len(numbers) == len(call.args) - 1:
        return [Rows(rows.table, (*rows.path, place))]
    if call.name in _PRODUCTS:
        return [Rows(rows.table.flatten(), (*rows.path, place))]
    return []


def _moved(call: Call, rows: Rows) -> list[Tensor]:
    """The labels go where the values go: by the same operation."""
    if call.name in _KEEPS:
        return [rows.table]
    if call.name in _VIEWS:
        return [rows.table.reshape(call.outs[0].shape)]
    made = call.func(rows.table, *call.args[1:], **call.kwargs)
    return [made] if isinstance(made, Tensor) else list(made)
