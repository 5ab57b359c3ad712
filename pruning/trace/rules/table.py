"""The table of rules: which function says how labels pass through which operation, and what kind that operation is."""

from __future__ import annotations

from collections.abc import Callable
from enum import Flag, auto
from typing import Any

from pruning.errors import UsageError
from pruning.trace.call import Call

# A rule gets a call, ties what belongs together, and returns the axes of the output: a tuple with one entry per
# dimension. Of several outputs it returns a list; outputs it says nothing of carry no labels.
Rule = Callable[[Call], Any]

RULES: dict[str, Rule] = {}  # "aten.relu" -> its rule


class Kind(Flag):
    """What others than its rule need to know of an operation. One operation may be of several kinds."""

    NOTHING = 0
    KEEPS_ZERO = auto()  # f(0) = 0, or f(0, 0) = 0 where all its tensors are zero
    SUMS = auto()  # a reduction that zeros leave as it is
    MAKES = auto()  # its result has labels although nothing that goes in has
    TAKES_NUMBERS = auto()  # values depend on the numbers it takes, as in every pointwise operation
    MOVES = auto()  # hands values on as they are
    COPIES = auto()  # a move that hands on the tensor in its shape
    RESHAPES = auto()  # a move that keeps the order of values and gives them another shape
    SCALES = auto()  # multiplies by a number
    PICKS = auto()  # takes slices of its first tensor; which ones, other tensors say
    MULTIPLIES = auto()  # a product of matrices: a factor of either operand is one of the result


_KINDS: dict[str, Kind] = {}

# What takes a tensor for its shape, type and device alone.
FOR_THE_SHAPE = frozenset(
    f"aten.{name}"
    for name in (
        *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
        *("new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided"),
    )
)


def kind_of(name: str) -> Kind:
    """Returns what kind an operation is; variants in place ("aten.relu_") are none unless they are named."""
    return _KINDS.get(name, Kind.NOTHING)


def rule(names: str, *, kind: Kind = Kind.NOTHING) -> Callable[[Rule], Rule]:
    """Enters a function under these names of ATen operations; variants in place and those that copy come along.

    Args:
        names: separated by blanks, without "aten.".
        kind: of all these operations. A rule for operations of several kinds is entered once for each.
    """

    def enter(function: Rule) -> Rule:
        for name in names.split():
            for variant in (name, f"{name}_", f"{name}_copy"):
                RULES[f"aten.{variant}"] = function
            _KINDS[f"aten.{name}"] = kind_of(f"aten.{name}") | kind
        return function

    return enter


def register_rule(op: Any, rule: Rule) -> None:
    """Teaches the graph an operation of your own; takes effect for graphs built afterwards.

    Args:
        op: `torch.ops.mylib.op`, one of its overloads, or its name "mylib.op".
        rule: function of a `Call` that returns the output's axes; see `Rule`.

    Raises:
        UsageError: if `op` names no operation or the rule cannot be called.
    """
    name = op if isinstance(op, str) else str(getattr(op, "overloadpacket", op))
    names_an_operation = name.count(".") == 1 and " " not in name
    if not names_an_operation or not callable(rule):
        raise UsageError(f"register_rule needs torch.ops.<library>.<op> and a function, not {op!r} and {rule!r}.")
    RULES[name] = rule
