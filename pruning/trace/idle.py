"""Parts of tensors of which only the shape was used: what was said of them counts for nothing.

Code asks `x[:, :3].shape[0]`, or `zeros_like(x[:, 0])`, and never reads a value of the part. Nothing then depends on
which channels the part holds, so it neither pins nor couples any, and the dry run does not compare it.
"""

from __future__ import annotations

from pruning.trace.labels import Entry
from pruning.trace.rules.table import FOR_THE_SHAPE, Kind, kind_of
from pruning.trace.sizes import Sizes
from pruning.trace.trace import Trace

_PARTS = frozenset(("aten.slice", "aten.select"))


def leave_out_idle(trace: Trace, sizes: Sizes) -> None:
    """Marks the parts whose values nobody read, and forgets what was said of them."""
    if trace.real:  # NumPy may read values that no operation reads
        return
    entries = trace.entries
    if not any(entry.name in _PARTS for entry in entries):
        return
    is_read = set(trace.returned)
    for place in range(len(entries) - 1, -1, -1):  # whoever reads comes after
        entry = entries[place]
        entry.idle = place not in is_read and _only_hands_on(entry)
        if not entry.idle and entry.name not in FOR_THE_SHAPE:
            is_read.update(entry.reads)
    idle = {place for place, entry in enumerate(entries) if entry.idle}
    if idle:
        trace.ties = [tie for tie in trace.ties if tie[2] not in idle]
        trace.pins = [pin for pin in trace.pins if pin[1] not in idle]
        sizes.equations = [equation for equation in sizes.equations if equation.index not in idle]


def _only_hands_on(entry: Entry) -> bool:
    return not entry.func._schema.is_mutable and (entry.name in _PARTS or Kind.MOVES in kind_of(entry.name))
