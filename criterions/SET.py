import torch
from torch import Tensor

from criterions._densities import Distribution
from criterions._sparse_training import SparseTraining
from pruning import Batches, PrunableState, WeightCriterion
from pruning.scores import magnitudes


class SET(SparseTraining, WeightCriterion):
    """Sparse evolutionary training: weak weights make room for random ones (Mocanu et al. 2017, arXiv:1707.04780).

    Training starts under a random mask. At each update every layer loses the share `growing_rate` of its weights, those
    of smallest |w|, and grows as many at random places, from zero; its sparsity stays.

    Args:
        growing_rate: share of each layer's weights that an update replaces, above 0 to 1 (the paper's zeta).
        delta_t: optimizer steps between updates; once at the end of every epoch if not given.
        distribution: how many weights a layer gets at the start: "erk" in proportion to its width (Erdos-Renyi-Kernel,
            which is the paper's own for linear layers), "uniform" the same share of every layer, "global" as it falls.
        seed: of the first mask (the run's own seed).
    """

    needs_data = False

    def __init__(
        self,
        *,
        growing_rate: float = 0.3,
        delta_t: int | None = None,
        distribution: Distribution = "erk",
        seed: int = 333,
    ) -> None:
        super().__init__(growing_rate, delta_t, distribution, seed)

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        return magnitudes(network)

    def grow_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        """Returns random numbers: every free place is as good as any other."""
        scores = {}
        for name, weight in network.weights():
            scores[name] = torch.rand(weight.shape, dtype=torch.float64)
        return scores

    def update_share(self, progress: float) -> float:
        return self.growing_rate
