"""Factors that depend on a width, such as attention's 1 / sqrt(head width), moved into the rows of a weight.

When heads get narrower, code that takes the factor from the width multiplies by another number than before. If what it
multiplies is, up to views and products, the output of one linear layer that nobody else reads, the rows of that layer
can take up the ratio, and the network computes what it did. `Rows` follows such outputs through a trace.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from pruning.labels import Call, Labels
    from pruning.rehearsal import Failure
    from pruning.structure import Structure


class Rows(NamedTuple):
    """The rows of a weight that a tensor is linear in.

    Args:
        table: their labels, in the shape of those dimensions of the tensor that tell them apart.
        dims: these dimensions; None where one was merged with others.
        path: operations passed on the way (numbers in the run), not counting views.
    """

    table: Labels
    dims: tuple[int | None, ...]
    path: tuple[int, ...] = ()


class Scale(NamedTuple):
    """Rows of a weight, entries of its bias, and the factor that they have to take up."""

    labels: Labels
    factor: float


_KEEPS = frozenset(f"aten.{name}" for name in ("clone", "_to_copy", "detach", "alias", "lift_fresh"))
_SPLITS = frozenset(f"aten.{name}" for name in ("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"))
_VIEWS = frozenset(f"aten.{name}" for name in ("view", "_unsafe_view", "_reshape_alias"))
_TURNS = frozenset(f"aten.{name}" for name in ("t", "transpose", "permute"))
_FACTORS = frozenset(("aten.mul", "aten.div"))  # and attention in one piece, whose first operand are the queries
_PRODUCTS = frozenset(("aten.bmm", "aten.mm"))


def is_move(name: str) -> bool:
    """Says whether an operation hands values on as they are."""
    return name in _KEEPS | _SPLITS | _VIEWS | _TURNS or name in _OTHER_MOVES


_OTHER_MOVES = frozenset(f"aten.{name}" for name in ("unsqueeze", "squeeze", "expand", "select", "slice", "unbind"))


def made_by(call: Call) -> Rows | None:
    """Returns the rows behind the output of a linear layer whose weight and bias are parameters as they stand."""
    tensors = call.tensors()
    operands = {"aten.addmm": (2, 0), "aten.mm": (1, None)}.get(call.name)
    if operands is None:
        return None
    weight, bias = tensors[operands[0]], None if operands[1] is None else tensors[operands[1]]
    trace, axis = call.trace, call.trace.axes(weight)[-1]
    plain = trace.is_plain(weight) and (bias is None or trace.is_plain(bias))
    if axis is None or not plain or trace.is_weight(tensors[-2 if bias is None else 1]):
        return None
    if bias is not None:
        added = trace.axes(bias)[-1]
        if added is None or bias.dim() != 1:
            return None
        trace.bias_of[axis.labels] = added.labels
    return Rows(axis.labels, (call.outs[0].dim() - 1,))


def handed_on(call: Call, rows: Rows, place: int) -> list[Rows | None]:
    """Returns the rows behind each output of an operation that reads a tensor with rows; `place` is its number."""
    name, count = call.name, len(call.outs)
    if is_move(name):
        return _moved(call, rows)
    numbers = [value for value in call.args[1:] if not isinstance(value, Tensor) or value.dim() == 0]
    if name in _FACTORS and len(numbers) == len(call.args) - 1:
        return [rows._replace(path=(*rows.path, place))]
    if name in _PRODUCTS and call.args[0] is not call.args[1]:
        return [Rows(rows.table.ravel(), (None,), (*rows.path, place))]
    return [None] * count


def _moved(call: Call, rows: Rows) -> list[Rows | None]:
    name, outs, rank = call.name, call.outs, call["self"].dim()
    if name in _KEEPS:
        return [rows]
    if name in _VIEWS:
        return [_viewed(rows, call.trace.entry.choices, outs[0])]
    if name in _TURNS:
        order = list(call["dims"]) if call.has("dims") else _swapped(call, rank)
        return [rows._replace(dims=tuple(None if dim is None else order.index(dim) for dim in rows.dims))]
    if name == "aten.expand":
        lead = outs[0].dim() - rank
        return [rows._replace(dims=tuple(None if dim is None else dim + lead for dim in rows.dims))]
    if name in ("aten.unsqueeze", "aten.squeeze"):
        return [_reshaped_ones(call, rows)]
    return _parts(call, rows)


def _swapped(call: Call, rank: int) -> list[int]:
    order = list(range(rank))
    one, other = (call["dim0"] % rank, call["dim1"] % rank) if call.has("dim0") else (0, rank - 1)
    order[one], order[other] = order[other], order[one]
    return order


def _reshaped_ones(call: Call, rows: Rows) -> Rows | None:
    """Dimensions of size 1 come or go; the others keep their order."""
    before = [dim for dim, size in enumerate(call["self"].shape) if size != 1]
    after = [dim for dim, size in enumerate(call.outs[0].shape) if size != 1]
    if any(dim is not None and dim not in before for dim in rows.dims):
        return None
    return rows._replace(dims=tuple(None if dim is None else after[before.index(dim)] for dim in rows.dims))


def _viewed(rows: Rows, choices: list[Any], out: Tensor) -> Rows | None:
    """A split dimension splits the table; a merged one no longer tells rows apart."""
    table = rows.table
    dims: list[int | None] = []
    shape: list[int] = []
    for dim, size in zip(rows.dims, table.shape, strict=True):
        block = next((block for block in choices[0] if dim in block[0]), None) if choices else None
        if dim is None or block is None or len(block[0]) > 1:
            dims.append(None)
            shape.append(size)
        else:
            dims += block[1]
            shape += [out.shape[place] for place in block[1]]
    return Rows(table.reshape(shape), tuple(dims), rows.path) if math.prod(shape) == table.size else None


def _parts(call: Call, rows: Rows) -> list[Rows | None]:
    """One part of a dimension: of the rows too, if the dimension tells them apart."""
    name, rank = call.name, call["self"].dim()
    dim = call["dim"] % rank
    single = name in ("aten.select", "aten.unbind")
    if dim not in rows.dims:
        whole = name == "aten.slice" and call.outs[0].shape == call["self"].shape
        if None in rows.dims and not whole:
            return [None] * len(call.outs)
        left = tuple(other - 1 if single and other is not None and other > dim else other for other in rows.dims)
        return [rows._replace(dims=left) for _ in call.outs]
    axis = rows.dims.index(dim)
    if single:
        others = [other for place, other in enumerate(rows.dims) if place != axis]
        dims = tuple(other - 1 if other is not None and other > dim else other for other in others)
        picked = range(len(call.outs)) if name == "aten.unbind" else [call["index"]]
        return [Rows(np.asarray(rows.table.take(index, axis)), dims, rows.path) for index in picked]
    if name == "aten.slice":
        index = [slice(None)] * rows.table.ndim
        index[axis] = slice(call["start"], call["end"], call["step"])
        return [rows._replace(table=rows.table[tuple(index)])]
    ends = np.cumsum([out.shape[dim] for out in call.outs])[:-1]
    return [rows._replace(table=part) for part in np.split(rows.table, ends, axis)]


def scale_for(structure: Structure, failure: Failure, uses: list[tuple[Labels, int]]) -> Scale | None:
    """Returns what the weight must take up so that a changed number changes nothing; None where that is impossible.

    Args:
        structure: of the network.
        failure: an operation whose numbers changed.
        uses: (labels of rows, number of the operation) of everything that read rows in the same run.
    """
    entry, rows = failure.entry, failure.entry.rows
    scales = entry.name in _FACTORS or "attention" in entry.name
    if rows is None or not scales or len(entry.numbers) != 1 or len(failure.numbers) != 1:
        return None
    before, after = float(entry.numbers[0]), float(failure.numbers[0])
    if not before or not after:
        return None
    mine = np.unique(rows.table)
    readers = sorted(place for table, place in uses if np.isin(mine, table).any())
    if readers != sorted((*rows.path, failure.index)) or len(np.unique(structure.owners(mine))) != 1:
        return None  # somebody else reads these rows too
    factor = after / before if entry.name == "aten.div" else before / after
    biases = structure.bias_of[mine]
    return Scale(np.concatenate([mine, biases[biases >= 0]]), factor)
