"""Which dimensions count attention heads, found by a run of its own before the one that is believed.

A view splits what a projection makes into heads and the width of one. Pruned by widths, heads stay and each gets
narrower; pruned by heads, all slices of one head are one node. The sizes do not tell the two apart, but attention does:
it multiplies activations with each other head by head. So the dimension along which such products run batch by batch
counts the heads, whatever module or function computes them; so does the one dimension beside which a softmax runs over
tokens, where products are written element by element.

`HeadSearch` gives both sides of every split labels of their own and watches which of them reach such a product.
`head_axes` then says for every split, and every join of two dimensions, which of them counts heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from pruning.trace.components import connected
from pruning.trace.labels import Axis, HeadAxes, Labels
from pruning.trace.rules.table import Rule
from pruning.trace.rules.view import front_of
from pruning.trace.trace import Trace

_LARGEST_JOIN = 1_000_000  # labels of two dimensions of a parameter in one; heads and their widths have thousands


@dataclass(eq=False)
class _Factored:
    """A dimension beside the several that it was split into, or that it was joined of.

    Args:
        table: labels of the one, in the shape of the several.
        sides: which of the several -> its labels; the others have none.
        uses: where this happens: a key of `HeadAxes`, and which side each dimension of the block is, -1 for none.
    """

    table: Labels
    sides: dict[int, Labels]
    uses: list[tuple[tuple[int, int, str], list[int]]] = field(default_factory=list)

    @property
    def core(self) -> Labels:
        """The table along dimensions with labels; along the others it is the same everywhere."""
        index = tuple(slice(None) if place in self.sides else 0 for place in range(self.table.ndim))
        return self.table[index]


class HeadSearch(Trace):
    """A trace in which both sides of every split have labels. Only its ties mean anything.

    Args:
        rules: as for `Trace`.
        first_label: the same.
        real: the same.
    """

    def __init__(self, rules: dict[str, Rule], first_label: int, *, real: bool = False) -> None:
        super().__init__(rules, first_label, real=real)
        self.factored: list[_Factored] = []
        self.batches: list[Labels] = []  # dimensions along which activations are multiplied batch by batch
        self._sides: set[int] = set()  # labels that this search made

    def batched(self, axis: Axis | None) -> None:
        if axis is not None:
            self.batches.append(axis.labels)

    def parted(self, table: Labels, zero: bool) -> list[Axis | None] | None:
        varying = []
        for place in range(table.ndim):
            front = front_of(table, place)
            if (front != front[:, :1]).any():
                varying.append(place)
        if len(varying) < 2:
            return None  # one side has all labels; the rule finds it
        known = self._with_table(table)
        if known is None:
            known = self._enter(table, {place: self.new_labels(table.shape[place]) for place in varying})
            self.note_heads(known.sides[varying[0]])
        self._note_use(known, "out", list(range(table.ndim)))
        found: list[Axis | None] = [None] * table.ndim
        for place, labels in known.sides.items():
            found[place] = Axis(labels, zero)
        return found

    def joined(self, axes: list[Axis | None], sizes: list[int]) -> Axis | None:
        labelled = {place: axis for place, axis in enumerate(axes) if axis is not None and self._may_be_of_heads(axis)}
        if len(labelled) < 2 or math.prod(len(axis.labels) for axis in labelled.values()) > _LARGEST_JOIN:
            return None
        zero = all(axis.zero for axis in labelled.values())
        sides = {place: axis.labels for place, axis in labelled.items()}
        again = self._joined_again(sides, sizes)
        if again is not None:
            return Axis(again, zero)
        if any(self.is_of_heads(axis) for axis in labelled.values()):
            return None  # a part of what was split; its outermost dimension goes on
        shape = [size if place in sides else 1 for place, size in enumerate(sizes)]
        labels = self.new_labels(math.prod(shape)).reshape(shape)
        known = self._enter(np.broadcast_to(labels, sizes), sides)
        self._note_use(known, "in", list(range(len(sizes))))
        return Axis(known.table.reshape(-1), zero)

    def _may_be_of_heads(self, axis: Axis) -> bool:
        """Says whether a parameter is behind a dimension; a batch that an `expand` made is no matter of heads."""
        first = int(axis.labels[0])
        return first < self.first_label or first in self._sides

    def _enter(self, table: Labels, sides: dict[int, Labels]) -> _Factored:
        known = _Factored(table, sides)
        self.factored.append(known)
        for labels in (table, *sides.values()):
            self._sides.update(labels.ravel().tolist())
        return known

    def _note_use(self, known: _Factored, side: str, places: list[int]) -> None:
        known.uses.append(((self.steps, self.block, side), places))

    def _with_table(self, table: Labels) -> _Factored | None:
        """Returns where these labels were split, or joined, in the same shape before."""
        for known in self.factored:
            may_be = known.table.shape == table.shape and known.table.flat[0] == table.flat[0]
            if may_be and np.array_equal(known.table, table):
                return known
        return None

    def _joined_again(self, sides: dict[int, Labels], sizes: list[int]) -> Labels | None:
        """Returns the labels of dimensions that were one before they were split, in the order that they have now."""
        for known in self.factored:
            own = list(known.sides.values())
            order = [_index(own, labels) for labels in sides.values()]
            if sorted(order) != list(range(len(own))):
                continue
            places = [-1] * len(sizes)
            for place, index in zip(sides, order, strict=True):
                places[place] = list(known.sides)[index]
            self._note_use(known, "in", places)
            shape = [len(sides[place]) if place in sides else 1 for place in range(len(sizes))]
            table = known.core.transpose(order).reshape(shape)
            return np.broadcast_to(table, sizes).reshape(-1)
        return None


def _index(rows: list[Labels], labels: Labels) -> int:
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
        _enter_uses(found, known, place)
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
            _enter_uses(found, known, place)
    return found


def _enter_uses(found: HeadAxes, known: _Factored, side: int) -> None:
    for key, places in known.uses:
        found[key] = places.index(side)


def _batched_place(known: _Factored, component: Labels, of_batches: Labels) -> int | None:
    """Returns the outermost dimension that attention multiplies batch by batch."""
    for place in known.sides:
        if np.isin(component[known.sides[place]], of_batches).any():
            return place
    return None


def _constant_place(known: _Factored, component: Labels) -> int | None:
    """Returns the dimension along which heads differ while they are the same along all others."""
    for place in known.sides:
        front = component[front_of(known.table, place)]
        is_constant = bool((front == front[0]).all())
        if is_constant and len(np.unique(front[0])) > 1:
            return place
    return None
