import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from criterions._low_rank import Decomposition
from pruning import Batches, LowRankCriterion, PrunableState
from pruning.cut.factorize import Layer, blocks_of, singular_values


class ALDS(Decomposition, LowRankCriterion):
    """Least largest error over layers, each in subspaces of its own number and rank (arXiv:2107.11442).

    A layer's input channels are cut into k equal parts, each with factors of rank j; its error is the paper's bound on
    the relative operator norm, sqrt(k) max_i sigma_{i, j + 1} / sigma_1. All k and j are weighed, so the choice is the
    best one there is for the budget, without the paper's random starts. Needs no data; give it a trained network.

    Args:
        max_subspaces: largest k; all up to it are tried that divide the number of input channels.
    """

    lost = "error: bound on what is lost of the weight's operator norm, arXiv:2107.11442"

    def __init__(self, *, max_subspaces: int = 16, **given: Any) -> None:
        super().__init__(**given)
        if max_subspaces < 1:
            raise ValueError(f"max_subspaces must be at least 1; {max_subspaces} was given")
        self.max_subspaces = max_subspaces

    def rank_errors(
        self, network: PrunableState, layers: Mapping[str, Layer], batches: Batches
    ) -> dict[str, dict[int, Tensor]]:
        """Returns sqrt(k) max_i sigma_{i, j + 1} / sigma_1 for every k."""
        found = {}
        for path, layer in layers.items():
            found[path] = {subspaces: _errors(layer, subspaces) for subspaces in self._divisors(layer)}
        return found

    def _divisors(self, layer: Layer) -> list[int]:
        """Returns the numbers of equal parts that the layer's input channels can be cut into."""
        channels = layer.weight.shape[1]
        most = min(channels, self.max_subspaces)
        return [k for k in range(1, most + 1) if channels % k == 0]


def _errors(layer: Layer, subspaces: int) -> Tensor:
    """Returns (ranks,) the bound on the relative operator norm of what rank 1, 2, ... loses."""
    sizes = singular_values(blocks_of(layer, subspaces)).amax(0)  # (ranks,)
    largest = singular_values(blocks_of(layer)).max()
    # With rank j the largest singular value that is lost is the next one; the full rank loses nothing.
    after = torch.cat([sizes[1:], sizes.new_zeros(1)])
    return math.sqrt(subspaces) * after / largest.clamp_min(1e-300)
