"""What a pruning event did, in the criterion's own unit, for a person and for result.json."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Step:
    """One pruning event: fractions removed of what was there at the start.

    Args:
        asked: None where the criterion's threshold decides how much goes.
        reached: as asked, but what came of it.
        removed: weights that went.
        left: weights that are left.
        reason: why more or less was reached than asked.
        nodes_left: of criteria that cut nodes.
        layers: what the criterion says of each layer: its name, weights "kept" and "of" how many at the start, its
            "budget_share" of all that are kept, and the criterion's own facts; None for what it does not know.
        note: what those facts mean.
    """

    asked: float | None
    reached: float
    removed: int
    left: int
    reason: str = ""
    nodes_left: int | None = None
    layers: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""

    def describe(self, unit: str) -> str:
        """One line for a person, and the table of layers if there is one."""
        why = f" ({self.reason})" if self.reason else ""
        left = f"{self.left:,} weights left" if self.nodes_left is None else self._both_left()
        head = f"pruned {unit}: asked {self.asked_text}, reached {self.reached:.4f}, {left}{why}"
        return "\n".join([head, *self.table()])

    @property
    def asked_text(self) -> str:
        return "none" if self.asked is None else f"{self.asked:.4f}"

    def _both_left(self) -> str:
        return f"{self.nodes_left:,} nodes and {self.left:,} weights left"

    def table(self) -> list[str]:
        """Returns the lines of the table of layers, and of the note beneath it."""
        if not self.layers:
            return []
        cells = [[key.replace("_", " ") for key in self.layers[0]]]
        cells += [[_cell(key, value) for key, value in row.items()] for row in self.layers]
        return [*_aligned(cells), *textwrap.wrap(self.note, 116, initial_indent="  ", subsequent_indent="  ")]


@dataclass
class PruneReport:
    """All events of one call, and what they leave."""

    criterion: str
    unit: str
    steps: list[Step] = field(default_factory=list)

    @property
    def reached(self) -> float:
        return self.steps[-1].reached if self.steps else 0.0

    def __str__(self) -> str:
        lines = [f"{self.criterion}: {self.reached:.4f} of the {self.unit} removed in {len(self.steps)} steps"]
        for number, step in enumerate(self.steps, start=1):
            why = f"  ({step.reason})" if step.reason else ""
            lines.append(f"  {number}: asked {step.asked_text} reached {step.reached:.4f} left {step.left:,}{why}")
        return "\n".join([*lines, *(self.steps[-1].table() if self.steps else [])])


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "no guarantee" if key == "epsilon" else "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Returns lines of columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    ways = [str.ljust] + [str.rjust] * len(widths)
    lines = [[way(c, w) for way, c, w in zip(ways, row, widths, strict=False)] for row in cells]
    return ["  " + "  ".join(line) for line in lines]
