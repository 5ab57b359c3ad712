from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from criterions._points import first_points, points_needed
from pruning import CompressedNetwork, PrunableNetwork, WeightCriterion
from pruning.criterion import Batches
from pruning.sensitivity import weight_sensitivities


class SiPP(WeightCriterion):
    """Sensitivity: the largest share of a weight in its output over the points of S (Baykal et al., arXiv:1910.05422).

    max over S of the mean over positions of w a / (sum of the products of its sign), ranked over all layers. Needs a
    trained network and data without labels.

    Args:
        points: samples of S; as many as the theory asks for at this delta if not given.
        delta: probability with which the theory's promise may fail, above 0 to below 1.
    """

    over_positions: ClassVar[Literal["mean", "max"]] = "mean"

    def __init__(self, *, points: int | None = None, delta: float = 1e-16) -> None:
        if points is not None and points < 1:
            raise ValueError(f"points must be at least 1; {points} was given")
        if not 0 < delta < 1:
            raise ValueError(f"delta must lie in (0, 1); {delta} was given")
        self.points, self.delta = points, delta

    def weight_scores(self, network: PrunableNetwork, batches: Batches) -> dict[str, Tensor]:
        number = self.points or points_needed(network, self.delta)
        return weight_sensitivities(network, first_points(batches, number), self.over_positions)


def SiPPNet(model: nn.Module, loader: Batches, **options: Any) -> CompressedNetwork:
    """Returns a copy of a network that SiPP compresses, see `CompressedNetwork`; options are those of SiPP."""
    return CompressedNetwork(model, loader, SiPP(**options))
