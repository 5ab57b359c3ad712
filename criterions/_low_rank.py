"""What the criteria share that put two smaller layers in the place of one."""

from __future__ import annotations

from functools import partial
from typing import Literal

from pruning import schedule
from pruning.prune.criterion import Moment
from pruning.prune.schedule import Schedule


class Decomposition:
    """When layers are decomposed, and in how many steps.

    Args:
        moment: when it happens; a trained network may come from --checkpoint_name.
        rank_events: events, each of which removes the same share of what is left; decomposed layers are merged before.
    """

    moment: Moment
    schedule: Schedule
    needs_data: bool = False

    def __init__(self, *, moment: Literal["before", "during", "after"] = "before", rank_events: int = 1) -> None:
        if rank_events < 1:
            raise ValueError(f"rank_events must be at least 1; {rank_events} was given")
        self.moment = moment
        self.schedule = partial(schedule.exponential, rounds=rank_events)
