"""Which dimensions count attention heads, found by a run of its own before the one that is believed.

A view splits what a projection makes into heads and the width of one. Pruned by widths, heads stay and each gets
narrower; pruned by heads, all slices of one head are one node. The sizes do not tell the two apart, but attention does:
it multiplies activations with each other head by head. So the dimension along which such products run batch by batch
counts the heads, whatever module or function computes them.

`HeadSearch` gives both sides of every split labels of their own and watches which of them reach such a product.
`head_axes` then says for every split, and every join of two dimensions, which of them counts heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruning.trace.components import connected
from pruning.trace.labels import Axis, HeadAxes, Labels
from pruning.trace.rules.view import front_of
from pruning.trace.trace import Trace


@dataclass(eq=False)
class _Factored:
    """A dimension beside the several that it was split into, or that it was joined of.

    Args:
        key: where, as in `HeadAxes`.
        table: labels of the one, in the shape of the several.
        sides: labels of each of the several; None where there are none.
    """

    key: tuple[int, int, str]
    table: Labels
    sides: list[Labels | None]

    @property
    def places(self) -> list[int]:
        """The dimensions that have labels."""
        return [place for place, side in enumerate(self.sides) if side is not None]

    @property
    def core(self) -> Labels:
        """The table along dimensions with labels; along the others it is the same everywhere."""
        index = tuple(0 if side is None else slice(None) for side in self.sides)
        return self.table[index]


class HeadSearch(Trace):
    """A trace in which both sides of every split have labels; see the head of this file. Only its ties mean anything."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.factored: list[_Factored] = []
        self.batches: list[Labels] = []  # dimensions along which activations are multiplied batch by batch

    def batched(self, axis: Axis | None) -> None:
        if axis is not None:
            self.batches.append(axis.labels)

    def parted(self, table: Labels, zero: bool) -> list[Axis | None] | None:
        varies = []
        for place in range(table.ndim):
            front = front_of(table, place)
            varies.append(bool((front != front[:, :1]).any()))
        if sum(varies) < 2:
            return None  # one side has all labels; the rule finds it
        known = self._with_table(table)
        if known is None:
            sides = [self.new_labels(size) if does else None for does, size in zip(varies, table.shape, strict=True)]
            known = self._enter("out", table, sides)
        return [None if side is None else Axis(side, zero) for side in known.sides]

    def joined(self, axes: list[Axis | None], sizes: list[int]) -> Axis | None:
        labelled = [axis for axis in axes if axis is not None]
        zero = all(axis.zero for axis in labelled)
        sides = [None if axis is None else axis.labels for axis in axes]
        again = self._joined_again(sides, sizes)
        if again is not None:
            return Axis(again, zero)
        if any(self.is_of_heads(axis) for axis in labelled):
            return None  # a part of a split; what stands outermost in it goes on
        shape = [1 if side is None else size for side, size in zip(sides, sizes, strict=True)]
        count = int(np.prod(shape))
        table = np.broadcast_to(self.new_labels(count).reshape(shape), sizes)
        self._enter("in", table, sides)
        return Axis(table.reshape(-1), zero)

    def _enter(self, side: str, table: Labels, sides: list[Labels | None]) -> _Factored:
        known = _Factored((len(self.entries), self.block, side), table, sides)
        self.factored.append(known)
        if side == "out":
            first = next(labels for labels in sides if labels is not None)
            self.note_heads(first)
        return known

    def _with_table(self, table: Labels) -> _Factored | None:
        """Returns where these labels were split, or joined, into the same shape before."""
        for known in self.factored:
            may_be = known.table.shape == table.shape and known.table.flat[0] == table.flat[0]
            if may_be and np.array_equal(known.table, table):
                return known
        return None

    def _joined_again(self, sides: list[Labels | None], sizes: list[int]) -> Labels | None:
        """Returns the labels of dimensions that were one before they were split, in the order that they have now."""
        given = [labels for labels in sides if labels is not None]
        for known in self.factored:
            own = [known.sides[place] for place in known.places]
            order = [_index(own, labels) for labels in given]
            if sorted(order) != list(range(len(own))):
                continue
            shape = [1 if labels is None else len(labels) for labels in sides]
            table = known.core.transpose(order).reshape(shape)
            return np.broadcast_to(table, sizes).reshape(-1)
        return None


def _index(rows: list[Labels | None], labels: Labels) -> int:
    """Returns which of several rows these labels are, -1 if they are none."""
    for place, row in enumerate(rows):
        if np.array_equal(row, labels):
            return place
    return -1


def head_axes(search: HeadSearch) -> HeadAxes:
    """Returns which dimension of each split, and of each join, counts heads; those of no attention are left out."""
    ties = list(search.ties)
    _, component = connected(ties, search.next_label)
    of_batches = np.unique(component[np.concatenate([np.empty(0, np.int64), *search.batches])])
    found: HeadAxes = {}
    left = []
    for known in search.factored:
        place = _batched_place(known, component, of_batches)
        if place is None:
            left.append(known)
            continue
        found[known.key] = place
        front = front_of(known.table, place)
        ties += [(row, front[0], 0) for row in front[1:]]
        ties.append((front[0], known.sides[place], 0))
    if not found:
        return {}
    # The same heads may be split where no attention is: norms of queries, gates on outputs, weights of projections.
    _, component = connected(ties, search.next_label)
    for known in left:
        place = _constant_place(known, component)
        if place is not None:
            found[known.key] = place
    return found


def _batched_place(known: _Factored, component: Labels, of_batches: Labels) -> int | None:
    """Returns the outermost dimension that attention multiplies batch by batch."""
    for place in known.places:
        if np.isin(component[known.sides[place]], of_batches).any():
            return place
    return None


def _constant_place(known: _Factored, component: Labels) -> int | None:
    """Returns the dimension along which heads differ while they are the same along all others."""
    for place in known.places:
        front = component[front_of(known.table, place)]
        is_constant = bool((front == front[0]).all())
        if is_constant and len(np.unique(front[0])) > 1:
            return place
    return None
