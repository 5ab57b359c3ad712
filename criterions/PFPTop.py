from typing import Literal

import torch
from torch import Tensor

from criterions._pfp import FilterSensitivities, in_proportion
from criterions._sampling import draws_for
from pruning import NodeCriterion, PrunableState


class PFPTop(FilterSensitivities, NodeCriterion):
    """PFPRand, but filters that a draw would hit anyway stay for certain; the others are drawn (arXiv:1911.07412).

    The k filters with a probability of at least 1 / m stay as they are, m being the number of draws that hit as many
    filters as stay; the rest is drawn among the others and re-weighted. Trained network, data without labels.

    Args:
        points: samples of S; as many as the theory asks for at this delta if not given.
        delta: probability with which the theory's promise may fail, above 0 to below 1.
        channel_reduce: a channel's share is that of its largest kernel entry ("max") or of all together ("sum").
        seed: of the draw (the run's own seed).
    """

    counts = "weights"

    def __init__(
        self,
        *,
        points: int | None = None,
        delta: float = 1e-16,
        channel_reduce: Literal["max", "sum"] = "max",
        seed: int = 333,
    ) -> None:
        super().__init__(points=points, delta=delta, channel_reduce=channel_reduce)
        self.seed = seed

    def draw(self, network: PrunableState, keep: Tensor) -> Tensor:
        return self.draw_filters(network, keep, self._chances, self.seed)

    def _chances(self, sizes: Tensor, count: int) -> Tensor:
        """Returns the probability of each node of a group to stay; they add up to the count."""
        shares = sizes / sizes.sum()
        wanted = torch.tensor([float(count)], dtype=torch.float64)
        draws = draws_for(shares, wanted).exp()
        order = torch.sort(-shares, stable=True).indices
        sure = min(int((shares * draws >= 1).sum()), count)
        chances = torch.ones_like(shares)
        rest = order[sure:]
        # Where all places are taken, nobody is left to draw for.
        chances[rest] = in_proportion(sizes[rest], count - sure) if sure < count else 0.0
        return chances
