"""What one run takes of a cluster's node, as an experiment file says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from pruning.errors import UsageError


@dataclass(frozen=True)
class Demand:
    """Shares of a node that a run holds while it is made.

    Args:
        cpus: processor cores, also the number of its threads; a fraction lets runs share one.
        gpus: GPUs, of which it sees no others; a fraction below 1 lets runs share one.
        where: where the file asks for it.
    """

    cpus: float = 1
    gpus: float = 0
    where: str = ""

    @classmethod
    def read(cls, content: Any, where: Callable[..., str]) -> Demand:
        """Returns what the block `resources` of a file says; raises UsageError with the line for what does not fit."""
        if content is None:
            return cls(where=where())
        if not isinstance(content, Mapping):
            raise UsageError(f"{where()}: resources takes {{cpus: ..., gpus: ...}}; {content!r} was given.")
        for name, value in content.items():
            _check(name, value, where(name))
        return cls(**content, where=where())

    def fits(self, node: Mapping[str, float]) -> int:
        """Returns how many runs a node has room for, given how many "CPU" and "GPU" it has."""
        # The slack is for shares that binary numbers cannot hold, such as three times a third.
        shares = [(node.get("CPU", 0), self.cpus), (node.get("GPU", 0), self.gpus)]
        return min(int(there / asked + 1e-9) for there, asked in shares if asked)

    def __str__(self) -> str:
        cpus = f"{self.cpus:g} {'CPU' if self.cpus == 1 else 'CPUs'}"
        if not self.gpus:
            return cpus
        return f"{cpus} and {self.gpus:g} {'GPU' if self.gpus == 1 else 'GPUs'}"


def _check(name: str, value: Any, place: str) -> None:
    if name not in ("cpus", "gpus"):
        raise UsageError(f"{place}: there is no resource {name!r}; there are cpus and gpus.")
    is_number = type(value) in (int, float) and isfinite(value)
    # A run without a processor does not run; without a GPU it does.
    least = "above 0" if name == "cpus" else "from 0"
    if not is_number or value < 0 or (name == "cpus" and value == 0):
        raise UsageError(f"{place}: {name} is a number {least}; {value!r} was given.")
    if value > 1 and value != int(value):
        raise UsageError(f"{place}: more than one of {name} is a whole number; {value} was given.")
