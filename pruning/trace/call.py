"""An operation as a rule sees it, and the notes that a rule takes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from pruning.trace.labels import Axes, Axis, Entry, HeadAxes, Info, Labels, Split, Uses, with_zero
from pruning.trace.schema import schema, tensors_in


class Notes:
    """What is known of the tensors of a run, and what its operations said of their labels.

    Args:
        first_label: the first integer free for labels that stem from no parameter.
    """

    def __init__(self, first_label: int) -> None:
        self.first_label = self.next_label = first_label
        self.infos: dict[int, Info] = {}  # id of a tensor -> what is known of it
        self.entries: list[Entry] = []
        # What rules said, with the number of the operation in the run: (labels, ..., number, why).
        self.ties: list[tuple[Labels, Labels, int]] = []
        self.pins: list[tuple[Labels, int, str]] = []
        self.inexact: list[tuple[Labels, int, str]] = []
        self.consumed: list[Labels] = []
        self.roles: list[tuple[Labels, int]] = []
        self.aligned: list[tuple[Labels, int, int]] = []
        self.splits: list[Split] = []
        self.said_in_numbers: set[tuple[int, int]] = set()  # (operation, dimension) whose size is a number in the code
        self.row_uses: Uses = []
        self.bias_of = np.full(first_label, -1, dtype=np.int64)  # row of a weight -> entry of its bias
        self.stack: list[tuple[str, nn.Module]] = []  # modules whose forward is running, the innermost last
        self.entry = Entry(None, "", "")
        self.strides: tuple[int, ...] = ()  # of what as_strided is about to change
        self.sizes_are_read = False  # whether equations say how large the parts are that are being made
        self.head_axes: HeadAxes = {}  # known before the run; see pruning/trace/heads.py
        self.head_labels: set[int] = set()  # labels of dimensions with one index per head
        self.heads_made: list[tuple[str, Labels]] = []  # such dimensions, and the path of the module that made them
        self.steps = 0  # operations so far that parameters had a part in; others may run once only and be kept
        self.block = 0  # of a reshape, which of its blocks is at work
        self._overwritten: set[int] = set()  # storages whose values were written over and may be non-zero

    # -- what is known of a tensor ---------------------------------------------------------------------------------

    def axes(self, tensor: Tensor) -> Axes:
        """Returns the axis of every dimension, None where the dimension cannot shrink."""
        info = self.infos.get(id(tensor))
        if info is None:
            return (None,) * tensor.dim()
        if self._overwritten and tensor.untyped_storage()._cdata in self._overwritten:
            return tuple(with_zero(axis, False) for axis in info.axes)
        return info.axes

    def is_weight(self, tensor: Tensor) -> bool:
        """Says whether a tensor stems from parameters and buffers alone."""
        info = self.infos.get(id(tensor))
        return info is not None and info.weight

    def is_plain(self, tensor: Tensor) -> bool:
        """Says whether a tensor is a parameter as it stands."""
        info = self.infos.get(id(tensor))
        return info is not None and info.plain

    def is_product(self, tensor: Tensor) -> bool:
        """Says whether a tensor is a product of matrices to which nothing was added yet."""
        info = self.infos.get(id(tensor))
        return info is not None and info.product

    def is_bias(self, tensor: Tensor) -> bool:
        """Says whether a tensor, once it is added to a product, is a bias: a parameter, or rows of one."""
        info = self.infos.get(id(tensor))
        return info is not None and (info.weight or info.picked)

    # -- what a rule says ------------------------------------------------------------------------------------------

    def tie(self, one: Axis | None, other: Axis | None, why: str = "") -> None:
        """Couples two axes index by index; an axis that meets a dimension of fixed size must stay as it is."""
        if one is None or other is None:
            why = why or "meets a dimension of fixed size"  # of the two, at most one is something to pin
            self.pin(one, why)
            self.pin(other, why)
            return
        if len(one.labels) != len(other.labels):
            self.pin(one, "meets a dimension of another size")
            self.pin(other, "meets a dimension of another size")
            return
        if one.labels is not other.labels:  # x + x says nothing
            self.ties.append((one.labels, other.labels, len(self.entries)))

    def couple(self, table: Labels) -> None:
        """Couples all entries of each column of a (rows, columns) table."""
        if len(table) < 2:
            return
        others = table[1:]
        first = np.broadcast_to(table[0], others.shape)
        self.ties.append((others.ravel(), first.ravel(), len(self.entries)))

    def pin(self, axis: Axis | None, why: str) -> None:
        """Marks labels that must stay."""
        if axis is not None:
            self.pins.append((axis.labels, len(self.entries), why))

    def lose(self, axis: Axis | None, why: str) -> None:
        """Marks labels whose removal changes what the network computes a little (a mean over channels)."""
        if axis is not None:
            self.inexact.append((axis.labels, len(self.entries), why))
            self.consumed.append(axis.labels)

    def consume(self, axis: Axis | None) -> None:
        """Marks labels whose values an operation was seen to use up (a contraction, a reduction)."""
        if axis is not None:
            self.consumed.append(axis.labels)

    def mark(self, axis: Axis | None, role: int) -> None:
        """Says what part a weight's slices play: PRODUCER, CONSUMER or NORM."""
        if axis is not None:
            self.roles.append((axis.labels, role))

    def align(self, axis: Axis | None, multiple: int) -> None:
        """Says that as many must stay as make a multiple, since the operation takes no other size."""
        if axis is not None and multiple > 1:
            self.aligned.append((axis.labels, len(self.entries), multiple))

    # -- attention heads (pruning/trace/heads.py) ------------------------------------------------------------------

    def head_axis(self, side: str) -> int | None:
        """Returns which dimension of the block at work counts heads, of those before ("in") or after it ("out")."""
        return self.head_axes.get((self.steps, self.block, side))

    def note_heads(self, labels: Labels) -> None:
        """Takes down that a dimension has one index per head."""
        self.head_labels.update(labels.tolist())
        self.heads_made.append((self.entry.where, labels))

    def is_of_heads(self, axis: Axis) -> bool:
        """Says whether a dimension has one index per head."""
        return int(axis.labels[0]) in self.head_labels

    def batched(self, axis: Axis | None) -> None:
        """Told of every dimension along which activations are multiplied, or scored, batch by batch."""

    def joined(self, axes: list[Axis | None], sizes: list[int]) -> Axis | None:
        """Returns what several dimensions become in one; None where the rule decides."""
        return None

    def parted(self, table: Labels, zero: bool) -> list[Axis | None] | None:
        """Returns what one dimension becomes in several; None where the rule decides."""
        return None

    # -- what a rule asks for --------------------------------------------------------------------------------------

    def new_axis(self, size: int, *, zero: bool = False) -> Axis | None:
        """Returns an axis of new labels, for values that no parameter made and that are alike at every index."""
        labels = self.new_labels(size if size > 1 else 0)
        return Axis(labels, zero) if len(labels) else None

    def new_labels(self, size: int) -> Labels:
        """Returns labels that no parameter has; the dry run finds them again in the entry."""
        labels = np.arange(self.next_label, self.next_label + size, dtype=np.int64)
        self.next_label += size
        self.entry.made_labels.append(labels)
        return labels

    def choose(self, decide: Callable[[], Any]) -> Any:
        """Returns what a rule decides by sizes; the dry run, where sizes differ, decides as the first run did."""
        choice = decide()
        self.entry.choices.append(choice)
        return choice

    @property
    def module(self) -> nn.Module | None:
        """The module whose forward is running."""
        return self.stack[-1][1] if self.stack else None


class Call:
    """One operation as a rule sees it: arguments by name, the tensors that came out, and the trace to talk to."""

    __slots__ = ("args", "func", "kwargs", "outs", "trace")

    def __init__(self, trace: Notes, func: Any, args: Sequence[Any], kwargs: dict[str, Any], outs: list[Tensor]):
        self.trace = trace
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.outs = outs

    @property
    def name(self) -> str:
        """Library and operation, "aten.relu_"."""
        return self.trace.entry.name

    @property
    def base_name(self) -> str:
        """The operation alone, in place or not: "relu"."""
        return self.name.split(".")[1].rstrip("_")

    def __getitem__(self, argument: str) -> Any:
        place, default = schema(self.func).arguments[argument]
        if argument in self.kwargs:
            return self.kwargs[argument]
        if place < len(self.args):
            return self.args[place]
        return default

    def get(self, argument: str, default: Any = None) -> Any:
        """Returns an argument; `default` where the operation takes none of that name."""
        return self[argument] if self.has(argument) else default

    def has(self, argument: str) -> bool:
        """Says whether the operation takes an argument of this name."""
        return argument in schema(self.func).arguments

    def dim(self, rank: int) -> int:
        """Returns the argument `dim` of an operation on `rank` dimensions, counted from the left."""
        return self["dim"] % max(rank, 1)  # torch takes a single number for one dimension

    def axes(self, argument: str) -> Axes:
        """Returns the axes of a tensor argument; () where it is None or the operation takes none of that name."""
        tensor = self.get(argument)
        return self.trace.axes(tensor) if isinstance(tensor, Tensor) else ()

    def tensors(self) -> list[Tensor]:
        """Returns all tensor arguments, those in lists included."""
        return tensors_in(self.args, self.kwargs)
