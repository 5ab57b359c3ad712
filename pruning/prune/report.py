"""What a pruning event did, in the criterion's own unit, for a person and for result.json."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MOST_NAMED = 4  # matrices that a line names before the others are only counted

# What is said of one layer, by what it is: its name, counts, shares, None for what is not known.
Row = dict[str, str | int | float | None]


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
        protected: which layers are left out since they are marked `keep` or frozen, which stay with others, and which
            went although they are frozen; "" if there are none.
        left_out: which matrices no criterion of weights masks, with their share of all parameters, "" if there is none.
    """

    asked: float | None
    reached: float
    removed: int
    left: int
    reason: str = ""
    nodes_left: int | None = None
    layers: list[Row] = field(default_factory=list)
    note: str = ""
    protected: str = ""
    left_out: str = ""

    def describe(self, unit: str) -> str:
        """One line for a person, and the table of layers if there is one."""
        why = f" ({self.reason})" if self.reason else ""
        left = f"{self.left:,} weights left"
        if self.nodes_left is not None:
            left = f"{self.nodes_left:,} nodes and {left}"
        head = f"pruned {unit}: asked {self.asked_text}, reached {self.reached:.4f}, {left}{why}"
        if self.protected:
            head += f"; {self.protected}"
        if self.left_out:
            head += f"; {self.left_out}"
        return "\n".join([head, *self.table()])

    @property
    def asked_text(self) -> str:
        return "none" if self.asked is None else f"{self.asked:.4f}"

    def table(self) -> list[str]:
        """Returns the lines of the table of layers, and of the note beneath it."""
        if not self.layers:
            return []
        cells = [[key.replace("_", " ") for key in self.layers[0]]]
        for row in self.layers:
            cells.append([_cell(key, value) for key, value in row.items()])
        note = textwrap.wrap(self.note, 116, initial_indent="  ", subsequent_indent="  ")
        return [*_aligned(cells), *note]


@dataclass
class PruneReport:
    """All events of one call, and what they leave.

    Args:
        criterion: its name.
        unit: what its limit counts.
        steps: one per event.
    """

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
        if self.steps and self.steps[-1].protected:
            lines.append(f"  {self.steps[-1].protected}")
        if self.steps and self.steps[-1].left_out:
            lines.append(f"  {self.steps[-1].left_out}")
        if self.steps:
            # What is said of the layers changes with each event; what they are in the end matters.
            lines += self.steps[-1].table()
        return "\n".join(lines)


def left_out_line(reasons: Mapping[str, str], sizes: Mapping[str, int], others: int) -> str:
    """Says which matrices no criterion of weights masks, with their share of all parameters; "" if there is none.

    Args:
        reasons: matrix -> why not.
        sizes: parameter -> its numbers, of all parameters.
        others: how many numbers biases, norms and all else have that multiplies channel by channel, if at all.
    """
    if not reasons:
        return ""
    total = sum(sizes.values())
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    parts = []
    for reason, names in by_reason.items():
        share = sum(sizes[name] for name in names) / total
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        parts.append(f"{', '.join(names[:MOST_NAMED])}{more} ({share:.1%}: {reason})")
    if others:
        parts.append(f"biases and scales ({others / total:.1%})")
    return f"left out, in shares of all parameters: {'; '.join(parts)}"


def _cell(key: str, value: str | int | float | None) -> str:
    if value is None:
        return "no guarantee" if key == "epsilon" else "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}"
    return value


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Returns lines of columns, the first to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = []
    for first, *others in cells:
        line = [first.ljust(widths[0])]
        for cell, width in zip(others, widths[1:], strict=True):
            line.append(cell.rjust(width))
        lines.append("  " + "  ".join(line))
    return lines
