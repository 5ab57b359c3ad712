from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from pruning import Batches, PrunableState, WeightCriterion, schedule
from pruning.scores import magnitudes


class IMP(WeightCriterion):
    """Iterative magnitude pruning, with or without rewinding (Frankle and Carbin 2019, arXiv:1803.03635).

    |w| over all layers, at events during training. With rewinding, each event that removes something sends weights,
    biases, norm state, optimizer and learning-rate schedule back to the end of one early epoch (arXiv:1903.01611).

    Args:
        enable_rewinding: go back to the state at the end of epoch `rewind_to` after each event.
        rewind_to: epoch (from 0) whose end is the state to go back to; must come before the first event.
        imp_schedule: "halving", SNIP-it's steps, or "rounds", which removes 20 % of the rest at each event.
        snip_steps: for "halving", how often the distance to the limit is halved; makes snip_steps + 2 events.
    """

    moment = "during"
    needs_data = False
    aliases: ClassVar[dict[str, str]] = {"rewind_epoch": "rewind_to"}

    def __init__(
        self,
        *,
        enable_rewinding: bool = False,
        rewind_to: int = 0,
        imp_schedule: Literal["halving", "rounds"] = "halving",
        snip_steps: int = 5,
    ) -> None:
        if rewind_to < 0:
            raise ValueError(f"rewind_to must be an epoch from 0; {rewind_to} was given")
        if snip_steps < 0:
            raise ValueError(f"snip_steps must be at least 0; {snip_steps} was given")
        self.rewind_epoch = rewind_to if enable_rewinding else None
        if imp_schedule == "rounds":
            self.schedule = schedule.share_of_rest
        else:
            self.schedule = partial(schedule.halving, steps=snip_steps)

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        return magnitudes(network)
