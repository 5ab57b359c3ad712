"""What is said of labels: axes of tensors, entries of a run, and an operation as a rule sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pruning.scales import Rows

if TYPE_CHECKING:
    from pruning.trace import Trace

Labels = NDArray[np.int64]

# What a run of somebody's network may raise; anything else (interrupts, exhausted memory) is not ours to catch.
RUN_ERRORS = (
    RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError, ArithmeticError,
)  # fmt: skip

PRODUCER, CONSUMER, NORM = 1, 2, 4


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


Axes = tuple["Axis | None", ...]


class Info(NamedTuple):
    """What is known of one tensor.

    Args:
        axes: the axis of every dimension, None where it cannot shrink.
        weight: parameters and buffers alone made it.
        points_at: labels of a dimension that its values are positions of (an argmax).
        summed: labels of the dimension that it is a sum of products over (attention scores).
        rows: rows of a weight that it is linear in; see pruning/scales.py.
        plain: a parameter as it stands, or a view of one.
    """

    axes: Axes
    weight: bool = False
    points_at: tuple[Labels, ...] = ()
    summed: tuple[Labels, ...] = ()
    rows: Rows | None = None
    plain: bool = False


@dataclass(slots=True)
class Entry:
    """One operation of a run, as the rehearsal needs it."""

    func: Any
    name: str
    where: str
    inputs: list[Labels] = field(default_factory=list)
    outs: list[tuple[torch.Size, torch.dtype, Axes]] = field(default_factory=list)
    numbers: tuple[Any, ...] = ()
    fresh: list[Labels] = field(default_factory=list)
    choices: list[Any] = field(default_factory=list)
    summed: list[Labels] = field(default_factory=list)  # dimensions that this operation sums products over
    scales: list[Labels] = field(default_factory=list)  # the same of the products that go into it
    rows: Rows | None = None  # of what it multiplies by a number
    described: int = 0  # outputs that the rule spoke of; the others (saved statistics) are nobody's business
    form: type = tuple
    decided: list[Tensor | None] = field(default_factory=list)  # of a run on data: flags and numbers of places

    @property
    def touched(self) -> list[Labels]:
        """Labels of all dimensions that go in or come out."""
        return self.inputs + [axis.labels for _, _, axes in self.outs for axis in axes if axis is not None]


_SCHEMAS: dict[Any, tuple[dict[str, tuple[int, Any]], str, bool, bool]] = {}


def schema(func: Any) -> tuple[dict[str, tuple[int, Any]], str, bool, bool]:
    """Returns (argument -> position and default, name of the rule, is it pointwise, can it decompose)."""
    known = _SCHEMAS.get(func)
    if known is None:
        arguments = {
            argument.name: (place, argument.default_value if argument.has_default_value() else None)
            for place, argument in enumerate(func._schema.arguments)
        }
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
        known = (arguments, str(func.overloadpacket), _is_pointwise(func), composite)
        _SCHEMAS[func] = known
    return known


def _is_pointwise(func: Any) -> bool:
    """Says whether torch calls an operation pointwise; some in-place variants lack the tag that the others have."""
    name = func._schema.name.split("::")
    variants = getattr(getattr(torch.ops, name[0]), name[1].rstrip("_"), None) if name[1].endswith("_") else None
    others = [getattr(variants, overload) for overload in variants.overloads()] if variants is not None else []
    return any(torch.Tag.pointwise in other.tags for other in (func, *others))


class Call:
    """One operation as a rule sees it: arguments by name, the tensors that came out, and the trace to talk to."""

    __slots__ = ("args", "func", "kwargs", "outs", "trace")

    def __init__(self, trace: Trace, func: Any, args: Sequence[Any], kwargs: dict[str, Any], outs: list[Tensor]):
        self.trace, self.func, self.args, self.kwargs, self.outs = trace, func, args, kwargs, outs

    @property
    def name(self) -> str:
        return self.trace.entry.name

    def __getitem__(self, argument: str) -> Any:
        place, default = schema(self.func)[0][argument]
        if argument in self.kwargs:
            return self.kwargs[argument]
        return self.args[place] if place < len(self.args) else default

    def has(self, argument: str) -> bool:
        """Says whether the operation takes an argument of this name."""
        return argument in schema(self.func)[0]

    def axes(self, argument: str) -> Axes:
        """Returns the axes of a tensor argument; () where it is None or the operation takes none of that name."""
        tensor = self[argument] if self.has(argument) else None
        return self.trace.axes(tensor) if isinstance(tensor, Tensor) else ()

    def tensors(self) -> list[Tensor]:
        """Returns all tensor arguments, those in lists included."""
        return tensors_in(self.args, self.kwargs)


def tensors_in(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    found = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(item for item in value if isinstance(item, Tensor))
    return found


def outputs_of(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    return [item for item in out if isinstance(item, Tensor)] if isinstance(out, (list, tuple)) else []
