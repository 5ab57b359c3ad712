"""Factors that depend on a width, such as attention's 1 / sqrt(head width), moved into the rows of a weight.

When heads get narrower, code that takes the factor from the width multiplies by another number than before. If what it
multiplies is, up to moves and products, the output of one layer that reaches nobody by another way, the rows of that
layer can take up the ratio, and the network computes what it did. `Rows` follows such outputs through a trace.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pruning.labels import Call, Labels
    from pruning.rehearsal import Failure
    from pruning.structure import Structure


@dataclass(eq=False)
class Rows:
    """The rows of a weight that a tensor is linear in.

    Args:
        table: the label of the row behind every value, in the tensor's shape (an expanded view, so it costs nothing);
            in one dimension where a product has mixed them.
        path: operations passed on the way (numbers in the run), moves not counted.
    """

    table: Tensor
    path: tuple[int, ...] = ()

    @cached_property
    def labels(self) -> Labels:
        """All labels in the table, in order."""
        once = tuple(slice(0, 1) if step == 0 else slice(None) for step in self.table.stride())
        return np.flatnonzero(np.bincount(self.table[once].flatten().numpy()))


Uses = list[tuple[Rows, int]]  # what operations other than moves read, and the number of the operation in the run


class Scale(NamedTuple):
    """Rows of a weight, entries of its bias, and the factor that they have to take up."""

    labels: Labels
    factor: float


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


def take_up(
    structure: Structure, changed: list[Failure], uses: Mapping[bool, Uses]
) -> tuple[list[Scale], list[Failure]]:
    """Returns what weights can take up of changed numbers, and the changes for which they cannot.

    Args:
        structure: of the network.
        changed: operations whose numbers changed, of all runs.
        uses: of each run, by its mode.
    """
    found: dict[bool, dict[tuple[int, ...], float]] = {training: {} for training in uses}
    owners: list[tuple[Failure, tuple[int, ...]]] = []
    for failure in changed:
        scale = _scale_for(structure, failure, uses[failure.training])
        key = tuple(scale.labels.tolist()) if scale else ()
        owners.append((failure, key))
        if scale:  # several factors may lie on the way
            found[failure.training][key] = found[failure.training].get(key, 1.0) * scale.factor
    first, *others = found.values()
    agreed = {key: factor for key, factor in first.items()
              if all(math.isclose(other.get(key, 0.0), factor) for other in others)}  # fmt: skip
    scales = [Scale(np.array(key), factor) for key, factor in agreed.items()]
    return scales, [failure for failure, key in owners if key not in agreed]


def _scale_for(structure: Structure, failure: Failure, uses: Uses) -> Scale | None:
    """Returns what the weight must take up so that a changed number changes nothing; None where that is impossible."""
    entry, rows = failure.entry, failure.entry.rows
    scales = entry.name in _FACTORS or "attention" in entry.name
    if rows is None or not scales or len(entry.numbers) != 1 or len(failure.numbers) != 1:
        return None
    before, after = float(entry.numbers[0]), float(failure.numbers[0])
    mine = rows.labels
    if not before or not after or len(np.unique(structure.owners(mine))) != 1:
        return None
    biases = structure.bias_of[mine]
    biases = np.sort(biases[biases >= 0])
    around = _readers(mine, failure.index, uses) != sorted((*rows.path, failure.index))
    if around or (len(biases) and _readers(biases, failure.index, uses) != [rows.path[0]]):
        return None  # somebody reads these rows without the factor
    factor = after / before if entry.name == "aten.div" else before / after
    return Scale(np.concatenate([mine, biases]), factor)


def _readers(labels: Labels, index: int, uses: Uses) -> list[int]:
    """Returns what reads any of these rows without having passed through operation `index`."""
    near = [(rows, place) for rows, place in uses if index not in rows.path and len(rows.labels)
            and rows.labels[0] <= labels[-1] and rows.labels[-1] >= labels[0]]  # fmt: skip
    return sorted(place for rows, place in near if np.isin(labels, rows.labels).any())
