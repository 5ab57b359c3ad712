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
        content = {} if content is None else content
        if not isinstance(content, Mapping):
            raise UsageError(f"{where()}: resources takes {{cpus: ..., gpus: ...}}; {content!r} was given.")
        for name, value in content.items():
            if name not in ("cpus", "gpus"):
                raise UsageError(f"{where(name)}: there is no resource {name!r}; there are cpus and gpus.")
            if type(value) not in (int, float) or not isfinite(value) or value < 0 or (name == "cpus" and not value):
                least = "above 0" if name == "cpus" else "from 0"
                raise UsageError(f"{where(name)}: {name} is a number {least}; {value!r} was given.")
            if value > 1 and value != int(value):
                raise UsageError(f"{where(name)}: more than one of {name} is a whole number; {value} was given.")
        return cls(**content, where=where())

    def fits(self, node: Mapping[str, float]) -> int:
        """Returns how many runs a node has room for, given how many "CPU" and "GPU" it has."""
        # The slack is for shares that binary numbers cannot hold, such as three times a third.
        shares = [(node.get("CPU", 0), self.cpus), (node.get("GPU", 0), self.gpus)]
        return min(int(there / asked + 1e-9) for there, asked in shares if asked)

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU{'s' * (self.gpus != 1)}" if self.gpus else ""
        return f"{self.cpus:g} CPU{'s' * (self.cpus != 1)}{gpus}"
