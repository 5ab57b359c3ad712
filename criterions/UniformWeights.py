import torch
from torch import Tensor

from criterions._sampling import Parts
from criterions.SiPPRand import SiPPRand
from pruning import Batches, PrunableState


class UniformWeights(SiPPRand):
    """The same share of every filter, drawn at random and re-weighted: what SiPP must beat (arXiv:1910.05422).

    Each weight stays with the same probability and is divided by it, so outputs are right on average. No data.

    Args:
        seed: of the draw (the run's own seed).
    """

    needs_data = False
    wants = {}

    def __init__(self, *, seed: int = 333) -> None:
        super().__init__(seed=seed)

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        self._layers = {
            name: (torch.zeros(weight.numel(), dtype=torch.long), 1.0) for name, weight in network.weights()
        }
        return {name: torch.ones_like(weight, dtype=torch.float32) for name, weight in network.weights()}

    def _chances(self, sizes: Tensor, parts: Parts, places: int) -> tuple[Tensor, Tensor]:
        chances = sizes * places / sizes.sum()
        return chances, torch.where(chances > 0, 1 / chances, 1.0)
