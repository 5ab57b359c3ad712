"""The schedule of SNIP-it and its kin, with the flag that says how many steps it has."""

from __future__ import annotations

from functools import partial

from pruning import schedule
from pruning.prune.schedule import Schedule


class Halving:
    """SNIP-it's steps (arXiv:2006.00896): each halves what is left of the way to the limit.

    Args:
        snip_steps: how often the distance to the limit is halved after the first event; makes snip_steps + 2 events.
    """

    schedule: Schedule

    def __init__(self, *, snip_steps: int = 5) -> None:
        if snip_steps < 0:
            raise ValueError(f"snip_steps must be at least 0; {snip_steps} was given")
        self.schedule = partial(schedule.halving, steps=snip_steps)
