from collections.abc import Mapping

import torch
from torch import Tensor

from criterions._low_rank import Decomposition
from pruning import Batches, LowRankCriterion, PrunableState
from pruning.cut.factorize import Layer, blocks_of, singular_values


class SVDEnergy(Decomposition, LowRankCriterion):
    """Singular values: the same share of their squares is lost in every layer (a baseline in arXiv:2107.11442).

    That share is the squared Frobenius distance of the factors from the weight, by the weight's. Needs no data; give it
    a trained network.
    """

    lost = "error: share of the sum of squared weights that is lost"

    def rank_errors(
        self, network: PrunableState, layers: Mapping[str, Layer], batches: Batches
    ) -> dict[str, dict[int, Tensor]]:
        """Returns (sum of the squares after the j-th) / (sum of all)."""
        found = {}
        for path, layer in layers.items():
            squares = singular_values(blocks_of(layer))[0].square()
            tails = squares.flip(0).cumsum(0).flip(0)
            lost = torch.cat([tails[1:], tails.new_zeros(1)])
            found[path] = {1: lost / tails[0].clamp_min(1e-300)}
        return found
