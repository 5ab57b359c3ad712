from functools import partial

from torch import Tensor

from pruning import Batches, PrunableState, WeightCriterion, schedule
from pruning.scores import magnitudes


class GMP(WeightCriterion):
    """Gradual magnitude pruning |w| with a cubic schedule during training (Zhu and Gupta 2017, arXiv:1710.01878).

    Removed weights stay removed (the paper lets masked weights drift on; a hard mask is simpler and close to it).

    Args:
        gmp_steps: pruning events; most is removed in the first ones.
    """

    moment = "during"
    needs_data = False

    def __init__(self, *, gmp_steps: int = 10) -> None:
        if gmp_steps < 1:
            raise ValueError(f"gmp_steps must be at least 1; {gmp_steps} was given")
        self.schedule = partial(schedule.cubic, steps=gmp_steps)

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        return magnitudes(network)
