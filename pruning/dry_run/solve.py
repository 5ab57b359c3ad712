"""New values of the integers in a network's code, solved from what the traced run read of every size.

An equation says that an expression of widths and attributes is as large as some dimension. Widths follow from a choice
of nodes, attributes are unknown. Whether equations hold for *every* choice is decided by Schwartz and Zippel's test:
nodes are given random numbers of channels, and what holds for those holds for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pruning.trace.labels import Labels
from pruning.trace.origins import Expression, Kept, Step, Width, leaves
from pruning.trace.sizes import Equation

Value = tuple[int, ...]  # one number per trial choice

Count = Callable[[Labels], Value]

_OPERATIONS: dict[str, Callable[[int, int], int]] = {"//": int.__floordiv__, "%": int.__mod__, "**": int.__pow__}


class NotWhole(ArithmeticError):
    """A quotient is no integer.

    Args:
        dividend: the expression that the divisor does not divide.
        divisor: an integer.
        by: the expression of the divisor.
    """

    def __init__(self, dividend: Expression | None, divisor: int, by: Expression | None) -> None:
        super().__init__(f"not a multiple of {divisor}")
        self.dividend, self.divisor, self.by = dividend, divisor, by


class Unknown(LookupError):
    """A value depends on an attribute that no equation has told yet, or on what cannot be inverted."""


@dataclass
class Failed:
    """An equation that does not hold.

    Args:
        equation: it.
        dividend: the equation may hold if the widths behind this are multiples of the divisor; None if that is not
            the matter.
        divisor: an integer, 0 where it is not the same for every choice.
        by: the expression of the divisor, if it is known.
    """

    equation: Equation
    dividend: Expression | None = None
    divisor: int = 0
    by: Expression | None = None


@dataclass
class Solver:
    """Solves equations for attributes.

    Args:
        equations: in the order of the run.
        count: how many labels of a row are there, for each trial choice.
        values: of attributes, by their keys; what is known beforehand, then what was solved.
        because: the equation that told each value.
        failed: what has no solution.
        chosen: equations that say less than it takes, so that one of several solutions was taken.
    """

    equations: list[Equation]
    count: Count
    values: dict[tuple[Any, ...], Value] = field(default_factory=dict)
    because: dict[tuple[Any, ...], tuple[Kept, Equation]] = field(default_factory=dict)
    failed: list[Failed] = field(default_factory=list)
    chosen: list[Equation] = field(default_factory=list)  # several attributes could have taken up the change
    _widths: dict[int, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.points = len(self.count(np.empty(0, np.int64)))
        # What the code says outright comes first: it holds whatever else is computed from it. Then what meets
        # dimensions that stay, such as the number of heads, or the width of a head where heads are pruned.
        made = [equation for equation in self.equations if equation.made]
        there = [equation for equation in self.equations if not equation.made]
        outright = [equation for equation in there if isinstance(equation.one, Kept)]
        computed = [equation for equation in there if not isinstance(equation.one, Kept)]
        waiting: list[Equation] = []
        for stage in (*_fixed_first(outright), *_fixed_first(computed), made):
            waiting = self._propagate([*waiting, *stage])
        while waiting:
            waiting = self._propagate(self._assume(waiting))

    # -- values ----------------------------------------------------------------------------------------------------

    def value(self, expression: Expression) -> Value:
        """Returns an expression's value for each trial choice.

        Raises:
            Unknown: if it depends on an attribute that is not known yet.
            NotWhole: if a quotient is no integer.
        """
        if isinstance(expression, int):
            return (expression,) * self.points
        if isinstance(expression, Width):
            known = self._widths.get(id(expression.labels))
            if known is None:
                known = self._widths[id(expression.labels)] = self.count(expression.labels)
            return known
        if isinstance(expression, Kept):
            if expression.key not in self.values:
                raise Unknown
            return self.values[expression.key]
        left, right = self.value(expression.left), self.value(expression.right)
        return self._computed(expression, left, right)

    def _computed(self, step: Step, left: Value, right: Value) -> Value:
        pairs = zip(left, right, strict=True)
        if step.symbol == "+":
            return tuple(one + other for one, other in pairs)
        if step.symbol == "-":
            return tuple(one - other for one, other in pairs)
        if step.symbol == "*":
            return tuple(one * other for one, other in pairs)
        if step.symbol == "//" and step.exact:
            return _divided(left, right, step.left, step.right)
        if len(set(left)) == len(set(right)) == 1:
            return (_OPERATIONS[step.symbol](left[0], right[0]),) * self.points
        if step.symbol == "%" and step.value == 0:
            _divided(left, right, step.left, step.right)
            return (0,) * self.points
        raise Unknown

    # -- solving ---------------------------------------------------------------------------------------------------

    def _propagate(self, equations: Iterable[Equation]) -> list[Equation]:
        """Solves what has one unknown until nothing new comes to light; returns equations that have several."""
        waiting = list(equations)
        while True:
            left = [equation for equation in waiting if not self._settle(equation)]
            if len(left) == len(waiting):
                return left
            waiting = left

    def _settle(self, equation: Equation) -> bool:
        """Checks an equation, or solves it for its only unknown; False if it has to wait."""
        for told, asked in ((equation.one, equation.other), (equation.other, equation.one)):
            try:
                self._solve(asked, self.value(told), equation)
            except Unknown:
                continue
            except NotWhole as error:
                dividend = told if error.dividend is None else error.dividend
                self.failed.append(Failed(equation, dividend, error.divisor, error.by))
            return True
        return False

    def _solve(self, expression: Expression, target: Value, equation: Equation) -> None:
        """Makes an expression equal a value by choosing its unknown attribute, or notes that it cannot be."""
        try:
            known: Value | None = self.value(expression)
        except Unknown:
            known = None
        if known is not None:
            if known != target:
                self.failed.append(Failed(equation))
        elif isinstance(expression, Kept):
            self.values[expression.key] = target
            self.because[expression.key] = (expression, equation)
        elif isinstance(expression, Step):
            self._invert(expression, target, equation)
        else:
            raise Unknown

    def _invert(self, step: Step, target: Value, equation: Equation) -> None:
        symbol = step.symbol
        try:
            right = self.value(step.right)
        except Unknown:
            self._invert_right(step, self.value(step.left), target, equation)
            return
        pairs = zip(target, right, strict=True)
        if symbol == "+":
            wanted = tuple(one - other for one, other in pairs)
        elif symbol == "-":
            wanted = tuple(one + other for one, other in pairs)
        elif symbol == "*":
            wanted = _divided(target, right, None, step.right)
        elif symbol == "//" and step.exact:
            wanted = tuple(one * other for one, other in pairs)
        else:
            raise Unknown
        self._solve(step.left, wanted, equation)

    def _invert_right(self, step: Step, left: Value, target: Value, equation: Equation) -> None:
        symbol = step.symbol
        pairs = zip(target, left, strict=True)
        if symbol == "+":
            wanted = tuple(one - other for one, other in pairs)
        elif symbol == "-":
            wanted = tuple(other - one for one, other in pairs)
        elif symbol == "*":
            wanted = _divided(target, left, None, step.left)
        elif symbol == "//" and step.exact:
            wanted = _divided(left, target, None, None)
        else:
            raise Unknown
        self._solve(step.right, wanted, equation)

    def _assume(self, waiting: list[Equation]) -> list[Equation]:
        """Lets all attributes of the first equation that has several unknown stay, but one; returns what still waits.

        The largest is the one that changes if that has an integer solution: widths shrink, numbers of heads stay.
        """
        for place, equation in enumerate(waiting):
            unknown = [leaf for side in (equation.one, equation.other) for leaf in leaves(side)
                       if isinstance(leaf, Kept) and leaf.key not in self.values]  # fmt: skip
            by_size = sorted({leaf.key: leaf for leaf in unknown}.values(), key=lambda leaf: -leaf.value)
            if len(by_size) < 2:
                continue  # such as a power, which nothing here inverts; the dry run says whether it fits
            failures = []
            for free in by_size:
                stay = {leaf.key: (leaf.value,) * self.points for leaf in by_size if leaf is not free}
                trial = Solver([equation], self.count, {**self.values, **stay})
                if not trial.failed:
                    self.values.update(stay)
                    self.chosen.append(equation)
                    return waiting
                failures += trial.failed
            self.failed.append(failures[0])
            return waiting[:place] + waiting[place + 1 :]
        return []


def _fixed_first(equations: list[Equation]) -> tuple[list[Equation], list[Equation]]:
    """Returns the equations with dimensions that stay, and the others."""
    fixed = [equation for equation in equations if isinstance(equation.other, int)]
    others = [equation for equation in equations if not isinstance(equation.other, int)]
    return fixed, others


def _divided(dividends: Value, divisors: Value, dividend: Expression | None, by: Expression | None) -> Value:
    pairs = list(zip(dividends, divisors, strict=True))
    for one, other in pairs:
        if other == 0 or one % other:
            raise NotWhole(dividend, other if len(set(divisors)) == 1 else 0, by)
    return tuple(one // other for one, other in pairs)
