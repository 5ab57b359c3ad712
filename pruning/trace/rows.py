"""Outputs of layers, followed on their way to a factor that depends on a width, such as attention's 1 / sqrt(width).

When heads get narrower, code that takes the factor from the width multiplies by another number than before. If what it
multiplies is, up to moves and products, the output of one layer that reaches nobody by another way, the rows of that
layer can take up the ratio (pruning/dry_run/rescale.py), and the network computes what it did. `Rows` says which rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pruning.trace.call import Call
from pruning.trace.labels import Axis, Rows
from pruning.trace.rules.table import Kind, kind_of


def is_move(name: str) -> bool:
    """Says whether an operation hands values on as they are."""
    return Kind.MOVES in kind_of(name)


class _Layer(NamedTuple):
    """Where an operation has what a layer is made of: places among its tensors, and dimensions."""

    weight: int
    weight_rows: int  # dimension of the weight with one index per output
    bias: int | None
    out_rows: int  # dimension of the output with one index per row of the weight


_LAYERS = {
    "aten.addmm": _Layer(weight=2, weight_rows=1, bias=0, out_rows=-1),  # nn.Linear hands on its weight transposed
    "aten.mm": _Layer(weight=1, weight_rows=1, bias=None, out_rows=-1),
    "aten.convolution": _Layer(weight=1, weight_rows=0, bias=2, out_rows=1),
}


def made_by(call: Call, place: int) -> Rows | None:
    """Returns the rows behind the output of a layer whose weight and bias are parameters as they stand.

    Args:
        call: any operation.
        place: its number in the run.
    """
    layer = _LAYERS.get(call.name)
    if layer is None or call.get("transposed", False):
        return None
    trace = call.trace
    tensors = call.tensors()
    weight = tensors[layer.weight]
    bias = None
    if layer.bias is not None and layer.bias < len(tensors):
        bias = tensors[layer.bias]

    axis = trace.axes(weight)[layer.weight_rows]
    if axis is None or not trace.is_plain(weight):
        return None
    for tensor in tensors:
        if tensor is not weight and tensor is not bias and trace.is_weight(tensor):
            return None  # a product of weights: none of them alone makes the output
    if bias is not None:
        added = _plain_vector(call, bias)
        if added is None:
            return None
        trace.bias_of[axis.labels] = added.labels

    out = call.outs[0]
    shape = [1] * out.dim()
    shape[layer.out_rows] = -1
    table = torch.from_numpy(axis.labels).view(shape).expand(out.shape)
    return Rows(table, (place,))


def _plain_vector(call: Call, bias: Tensor) -> Axis | None:
    """Returns the axis of a bias that is a parameter as it stands, None of any other."""
    if bias.dim() != 1 or not call.trace.is_plain(bias):
        return None
    return call.trace.axes(bias)[0]


def handed_on(call: Call, rows: Rows, place: int) -> list[Rows | None]:
    """Returns the rows behind each output of an operation that reads a tensor with rows; `place` is its number."""
    kind = kind_of(call.name)
    if Kind.MOVES in kind:
        return [Rows(table, rows.path) for table in _moved(call, rows, kind)]
    if Kind.SCALES in kind and _other_operands_are_numbers(call):
        return [Rows(rows.table, (*rows.path, place))]
    if Kind.MULTIPLIES in kind:
        return [Rows(rows.table.flatten(), (*rows.path, place))]
    return []


def _other_operands_are_numbers(call: Call) -> bool:
    tensors = [value for value in call.args[1:] if isinstance(value, Tensor)]
    return all(tensor.dim() == 0 for tensor in tensors)


def _moved(call: Call, rows: Rows, kind: Kind) -> list[Tensor]:
    """The labels go where the values go: by the same operation."""
    table = rows.table
    if table.dim() != call.args[0].dim():  # a product mixed them, so that no place has a row of its own
        return [table] * len(call.outs)
    if Kind.COPIES in kind:
        return [table]
    if Kind.RESHAPES in kind:
        return [table.reshape(call.outs[0].shape)]
    made = call.func(table, *call.args[1:], **call.kwargs)
    return [made] if isinstance(made, Tensor) else list(made)
