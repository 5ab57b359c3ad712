from typing import Any, ClassVar

from torch import Tensor

from criterions._hoyer import HoyerThreshold, relative
from pruning import Batches, PrunableState, WeightCriterion


class HoyerSquare(HoyerThreshold, WeightCriterion):
    """Weights that the Hoyer-Square penalty made small for their layer (Yang et al. 2020, arXiv:1908.09979).

    |w| sum |w| / sum w^2: the absolute weight by the size under which the penalty pushes weights of its layer to zero,
    so the scale of a layer changes nothing. hoyer_reg sets how sparse it becomes; there is no limit. No data.
    """

    wants: ClassVar[dict[str, Any]] = {"loss": "HoyerSquare"}

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        sizes = {name: weight.detach().abs().double() for name, weight in network.weights()}
        scores = {}
        for name, size in sizes.items():
            scores[name] = relative(size, size.sum(), size.square().sum())
        return scores
