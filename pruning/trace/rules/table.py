"""TODO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pruning.errors import UsageError
from pruning.trace.call import Call

Rule = Callable[[Call], Any]

RULES: dict[str, Rule] = {}


def rule(names: str) -> Callable[[Rule], Rule]:
    """Enters a function under these names of ATen operations; variants in place and those that copy come along."""

    def enter(function: Rule) -> Rule:
        for name in names.split():
            RULES.update(dict.fromkeys((f"aten.{name}", f"aten.{name}_", f"aten.{name}_copy"), function))
        return function

    return enter


def register_rule(op: Any, rule: Rule) -> None:
    """Teaches the graph an operation of your own; takes effect for graphs built afterwards.

    Args:
        op: `torch.ops.mylib.op`, one of its overloads, or its name "mylib.op".
        rule: function of a `Call` that returns the output's axes; see the head of this file.

    Raises:
        UsageError: if `op` names no operation or the rule cannot be called.
    """
    name = op if isinstance(op, str) else str(getattr(op, "overloadpacket", op))
    if not callable(rule) or name.count(".") != 1 or " " in name:
        raise UsageError(f"register_rule needs torch.ops.<library>.<op> and a function, not {op!r} and {rule!r}.")
    RULES[name] = rule
