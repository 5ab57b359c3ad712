from typing import Literal

from torch import Tensor

from criterions._guarantee import SAMPLED
from criterions._pfp import FilterSensitivities, in_proportion
from pruning import NodeCriterion, PrunableState


class PFPRand(FilterSensitivities, NodeCriterion):
    """Filters drawn in proportion to their sensitivity, their readers re-weighted without bias (arXiv:1911.07412).

    As many of each layer as PFP keeps; what reads a filter that stays is divided by its probability to stay. The draw
    is without replacement, in exactly the number asked for; its bound is that of the paper's draw with replacement.
    Needs a trained network and data without labels.

    Args:
        points: samples of S; as many as the theory asks for at this delta if not given.
        delta: probability with which the theory's promise may fail, above 0 to below 1.
        channel_reduce: a channel's share is that of its largest kernel entry ("max") or of all together ("sum").
        seed: of the draw (the run's own seed).
    """

    counts = "weights"
    theorem = SAMPLED

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
        return in_proportion(sizes, count)
