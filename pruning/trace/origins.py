"""Integers that remember where they come from: a width in flight, an attribute of a module, or arithmetic on these.

During the traced run `tensor.shape` and the integers that modules keep are such integers. torch takes them as plain
ones, `torch.Size`, `sum`, `max` and `math.prod` hand them on, and arithmetic on them keeps an expression. So wherever
the code says a size, the trace can read what that size depends on. What loses them (`int(x)`, floats, `range`) gives
plain integers, and the dry run shows whether that matters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from opcode import opmap
from types import CodeType, FrameType
from typing import Any, Protocol

from pruning.modules.kept import part, value_of
from pruning.trace.labels import Labels

# -- expressions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class Width:
    """How many labels of a dimension are there."""

    labels: Labels


@dataclass(frozen=True, eq=False, slots=True)
class Kept:
    """An integer that an object keeps.

    Args:
        holder: a module, or a plain object that a module holds (a configuration).
        name: of the attribute.
        path: places in nested lists, tuples and dicts on the way to the integer.
    """

    holder: Any
    name: str
    path: tuple[Any, ...] = ()

    @property
    def key(self) -> tuple[Any, ...]:
        """The same for every reading of the same integer."""
        return (id(self.holder), self.name, self.path)

    @property
    def value(self) -> int:
        """What the holder says now."""
        value = value_of(self.holder, self.name)
        for place in self.path:
            value = part(value, place)
        return int(value)


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """Arithmetic on two expressions.

    Args:
        symbol: one of + - * // % **.
        left: first operand.
        right: second operand.
        value: the result in the traced run.
        exact: nothing was rounded away; always true but for // with a remainder.
    """

    symbol: str
    left: Expression
    right: Expression
    value: int
    exact: bool = True


Expression = int | Width | Kept | Step


def leaves(expression: Expression) -> list[Width | Kept]:
    """Returns the widths and attributes in an expression, from left to right."""
    if isinstance(expression, Step):
        return leaves(expression.left) + leaves(expression.right)
    return [] if isinstance(expression, int) else [expression]


# -- integers ----------------------------------------------------------------------------------------------------------


class Listener(Protocol):
    """Whoever collects what the code says about sizes in one run."""

    def equal(self, one: Expression, other: Expression, what: str) -> None:
        """Notes that the code found two sizes equal."""

    def made(self, origin: Origin) -> None:
        """Notes a new integer."""


class Origin(int):
    """An integer with its expression; copies and pickles as a plain one.

    Args:
        value: the integer.
        expression: where it comes from.
        listener: collects comparisons; of another run's integers nothing is believed.
    """

    expression: Expression
    listener: Listener | None

    def __new__(cls, value: int, expression: Expression, listener: Listener) -> Origin:
        made = super().__new__(cls, value)
        made.expression, made.listener = expression, listener
        listener.made(made)
        return made

    def forget(self) -> None:
        """Becomes as good as a plain integer, once its run is over."""
        self.expression, self.listener = int(self), None

    def __eq__(self, other: object) -> bool:
        result = int.__eq__(self, other)  # type: ignore[operator]
        if result is True:
            self._compared(other, sys._getframe(1))
        return result

    def __ne__(self, other: object) -> bool:
        result = int.__ne__(self, other)  # type: ignore[operator]
        if result is False:
            self._compared(other, sys._getframe(1))
        return result

    __hash__ = int.__hash__

    def _compared(self, other: Any, frame: FrameType) -> None:
        # Dictionaries and caches compare keys too; only what the code itself compares says something about sizes.
        # What torch's own layers compare holds once their integers follow the shapes of their weights.
        if (
            self.listener is not None
            and _compares(frame)
            and not frame.f_globals.get("__name__", "").startswith("torch.")
        ):
            self.listener.equal(self.expression, expression_of(other, self.listener), "a comparison of sizes")

    def __reduce__(self) -> tuple[Any, ...]:
        return (int, (int(self),))

    def __copy__(self) -> int:
        return int(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int(self)

    def __neg__(self) -> int:
        return 0 - self

    def __pos__(self) -> int:
        return self

    __round__ = __floor__ = __ceil__ = __trunc__ = __pos__  # type: ignore[assignment]  # whole numbers already

    def __abs__(self) -> int:
        return self if int(self) >= 0 else -self

    def __divmod__(self, other: Any) -> tuple[int, int]:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> tuple[int, int]:
        return other // self, other % self

    def __lshift__(self, places: int) -> int:
        return self * 2 ** int(places)

    def __rshift__(self, places: int) -> int:
        return self // 2 ** int(places)


_COMPARES: dict[CodeType, frozenset[int]] = {}


def _compares(frame: FrameType) -> bool:
    """Says whether the instruction that a frame is at is a comparison written in the code."""
    places = _COMPARES.get(frame.f_code)
    if places is None:
        code = frame.f_code.co_code
        places = frozenset(place for place in range(0, len(code), 2) if code[place] == opmap["COMPARE_OP"])
        _COMPARES[frame.f_code] = places
    return frame.f_lasti in places


def expression_of(value: Any, listener: Listener) -> Expression:
    """Returns an integer's expression; a plain integer, or one of another run, is a constant."""
    if isinstance(value, Origin) and value.listener is listener:
        return value.expression
    return int(value)


def plain(value: Any) -> Any:
    """Returns a plain integer for one with an origin, anything else as it is."""
    return int(value) if isinstance(value, Origin) else value


def _arithmetic(symbol: str, name: str, *, swapped: bool = False) -> Callable[[Origin, Any], Any]:
    """Returns a method that computes as `int` does and keeps the expression."""
    function = getattr(int, name)

    def method(self: Origin, other: Any) -> Any:
        result = function(self, plain(other))
        if type(result) is not int or isinstance(other, bool) or self.listener is None:
            return result  # NotImplemented, a float, or of a run that is over
        mine, others = self.expression, expression_of(other, self.listener)
        left, right = (others, mine) if swapped else (mine, others)
        dividend, divisor = (int(other), int(self)) if swapped else (int(self), int(other))
        exact = symbol != "//" or dividend % divisor == 0
        return Origin(result, Step(symbol, left, right, result, exact), self.listener)

    return method


_NAMES = {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%", "pow": "**"}

for _name, _symbol in _NAMES.items():
    setattr(Origin, f"__{_name}__", _arithmetic(_symbol, f"__{_name}__"))
    setattr(Origin, f"__r{_name}__", _arithmetic(_symbol, f"__r{_name}__", swapped=True))
