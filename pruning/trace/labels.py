"""What is said of labels: the axes of a tensor, and the operations of a run as the dry run needs them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Labels = NDArray[np.int64]

# (number of an operation among those that parameters had a part in, block of its reshape, "in" or "out") -> which
# dimension of the block counts heads; see pruning/trace/heads.py.
HeadAxes = dict[tuple[int, int, str], int]

# What part a slice of a weight plays in its layer, as bits, since a shared weight may play several.
PRODUCER, CONSUMER, NORM = 1, 2, 4
ROLES = {"producer": PRODUCER, "consumer": CONSUMER, "norm": NORM, "all": 0}


class Axis(NamedTuple):
    """A dimension that can shrink.

    Args:
        labels: one label per index.
        zero: the values at an index are zero once all slices of its node are; sums over such an axis lose nothing.
    """

    labels: Labels
    zero: bool = True

    def take(self, index: Any) -> Axis:
        """Returns the axis after NumPy indexing of its positions."""
        return Axis(self.labels[index], self.zero)

    def tiled(self, times: int) -> Axis:
        """Returns the axis after copies that follow each other: a b a b."""
        return Axis(np.tile(self.labels, times), self.zero)

    def repeated(self, times: int) -> Axis:
        """Returns the axis with every index several times: a a b b."""
        return Axis(np.repeat(self.labels, times), self.zero)


Axes = tuple["Axis | None", ...]  # one per dimension of a tensor, None where it cannot shrink


def with_zero(axis: Axis | None, zero: bool) -> Axis | None:
    """Returns the axis with another promise about its zeros; None where there is no axis."""
    if axis is None:
        return None
    return Axis(axis.labels, zero)


def leaving(labels: Labels, shift: int) -> Labels:
    """Returns what a shift moves from one end of a dimension to the other: its last labels, or its first."""
    return labels[-shift:] if shift > 0 else labels[:-shift]


class Info(NamedTuple):
    """What is known of one tensor.

    Args:
        axes: the axis of every dimension, None where it cannot shrink.
        weight: parameters and buffers alone made it.
        points_at: labels of a dimension that its values are positions of (an argmax).
        picked_from: labels of a dimension of which it is one position, with any other gone perhaps another one.
        summed: labels of the dimension that it is a sum of products over (attention scores).
        rows: rows of a weight that it is linear in; see pruning/trace/rows.py.
        plain: a parameter as it stands, or a view of one.
        product: of matrices; a weight that is added to it is a bias.
        picked: rows of a weight of two dimensions, such as the biases of the experts that were chosen.
    """

    axes: Axes
    weight: bool = False
    points_at: tuple[Labels, ...] = ()
    picked_from: tuple[Labels, ...] = ()
    summed: tuple[Labels, ...] = ()
    rows: Rows | None = None
    plain: bool = False
    product: bool = False
    picked: bool = False

    @property
    def says_nothing(self) -> bool:
        """Whether this is what an unknown tensor has."""
        has_labels = any(axis is not None for axis in self.axes)
        must_stay = self.points_at or self.picked_from
        return not (has_labels or must_stay or self.summed or self.rows or self.weight)


class Table(NamedTuple):
    """Values that no parameter had a part in, as they were when they met what parameters made.

    Args:
        labels: of each dimension, None where it cannot shrink.
        values: a copy; None where no dimension can shrink, and the digest says enough.
        digest: of all values.
    """

    labels: tuple[Labels | None, ...]
    values: Tensor | None
    digest: bytes


@dataclass(slots=True)
class Entry:
    """One operation of a run, as the dry run needs it."""

    func: Any
    name: str
    where: str  # path of the module whose forward ran it
    inputs: list[Labels] = field(default_factory=list)
    outs: list[tuple[torch.Size, torch.dtype, Axes]] = field(default_factory=list)
    numbers: tuple[Any, ...] = ()
    tables: list[Table] = field(default_factory=list)
    from_nothing: bool = False  # no parameter has a part in it, so its values show in the tables that come of it
    made_labels: list[Labels] = field(default_factory=list)
    choices: list[Any] = field(default_factory=list)
    summed: list[Labels] = field(default_factory=list)  # dimensions that this operation sums products over
    scales: list[Labels] = field(default_factory=list)  # the same of the products that go into it
    rows: Rows | None = None  # of what it multiplies by a number
    described: int = 0  # outputs that the rule spoke of; the others (saved statistics) are nobody's business
    form: type = tuple
    reads: list[int] = field(default_factory=list)  # numbers of the operations that made what goes in
    idle: bool = False  # a part of which only the shape was used
    decided: list[Tensor | None] = field(default_factory=list)  # of a run on data: flags and numbers of places

    @property
    def coming_out(self) -> list[Labels]:
        """Labels of all dimensions that come out."""
        found = []
        for _, _, axes in self.outs:
            found += [axis.labels for axis in axes if axis is not None]
        return found

    @property
    def touched(self) -> list[Labels]:
        """Labels of all dimensions that go in or come out."""
        return self.inputs + self.coming_out


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
        # Along expanded dimensions (a step of 0) every index holds the same.
        table = self.table
        for dim, step in enumerate(table.stride()):
            if step == 0:
                table = table.narrow(dim, 0, min(1, table.shape[dim]))
        counts = np.bincount(table.flatten().numpy())
        return np.flatnonzero(counts)


Uses = list[tuple[Rows, int]]  # what operations other than moves read, and the number of the operation in the run


class Split(NamedTuple):
    """One dimension in the shape of several, of which one shrinks while the others stay: heads and the width of one.

    Args:
        table: the label behind every value.
        chosen: which of the several shrinks.
        place: number of the operation in its run.
        where: path of the module whose code it is.
        dims: where the several are in the operation's result.
        may_change: which of the several the code does not say as a number.
    """

    table: Labels
    chosen: int
    place: int
    where: str
    dims: tuple[int, ...] = ()
    may_change: tuple[int, ...] = ()
