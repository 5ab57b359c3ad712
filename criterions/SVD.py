from collections.abc import Mapping

import torch
from torch import Tensor

from criterions._low_rank import Decomposition
from pruning import Batches, LowRankCriterion, PrunableState
from pruning.cut.factorize import Layer


class SVD(Decomposition, LowRankCriterion):
    """Singular values: the same share of the full rank for every layer (the baseline in arXiv:2107.11442).

    The factors of a rank are the nearest to the weight that there are, and each has half of the singular values. Needs
    no data; give it a trained network.
    """

    lost = "error: share of the full rank that goes, from the middle of a rank"

    def rank_errors(
        self, network: PrunableState, layers: Mapping[str, Layer], batches: Batches
    ) -> dict[str, dict[int, Tensor]]:
        """Returns 1 - (j + 1/2) / full rank: with a level of 1 - r the rank is r times the full one, rounded."""
        found = {}
        for path, layer in layers.items():
            full = min(layer.weight.flatten(1).shape)
            found[path] = {1: 1 - torch.arange(1.5, full + 1, dtype=torch.float64) / full}
        return found
