from functools import partial

import torch
from torch import Tensor

from pruning import Batches, PrunableState, WeightCriterion, schedule


class LAMP(WeightCriterion):
    """Layer-adaptive magnitude: w^2 by the sum of its layer's squares from w^2 up (Lee et al. 2021, arXiv:2010.07611).

    The largest weight of each layer scores 1, so ranking over all layers empties none. No data; prunes during
    training, at each event a share of what is left.

    Args:
        lamp_share: share of the remaining weights that each event removes.
    """

    moment = "during"
    needs_data = False

    def __init__(self, *, lamp_share: float = 0.5) -> None:
        if not 0 < lamp_share < 1:
            raise ValueError(f"lamp_share must lie in (0, 1); {lamp_share} was given")
        self.schedule = partial(schedule.share_of_rest, share=lamp_share)

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        return {name: lamp_scores(weight) for name, weight in network.weights()}


def lamp_scores(weight: Tensor) -> Tensor:
    """Returns w_u^2 / sum of w_v^2 over v at or after u in ascending order, in float64; zeros score 0."""
    values = weight.detach().flatten()
    if values.device.type == "mps":  # which has no double precision
        values = values.cpu()
    squares, order = values.double().square().sort(stable=True)
    # Sums from each square up to the largest, by adding from the end.
    tails = squares.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = squares / tails.clamp_min(torch.finfo(squares.dtype).tiny)
    return scores.view_as(weight)
