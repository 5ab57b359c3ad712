import math

from torch import Tensor

from criterions._densities import Distribution
from criterions._sparse_training import SparseTraining
from pruning import Batches, PrunableState, WeightCriterion
from pruning.scores import accumulate_gradients, magnitudes


class RigL(SparseTraining, WeightCriterion):
    """Rigged lottery: as SET, but what grows has the largest gradient |dL/dw| (Evci et al. 2020, arXiv:1911.11134).

    The gradient is that of all weights, present or not, on the score batches, computed at the updates only. The share
    that an update replaces falls with a cosine from `growing_rate` to 0 at the share `update_end` of training. Where
    the paper's uniform distribution leaves the first layer dense, here all layers get the same share, so that the
    asked sparsity is met exactly; --no-outer_layer_pruning leaves the first and the last layer dense.

    Args:
        growing_rate: share of each layer's weights that the first update replaces, above 0 to 1 (the paper's alpha).
        delta_t: optimizer steps between updates.
        update_end: share of training after which the masks stay as they are, above 0 to 1.
        distribution: how many weights a layer gets at the start: "erk" in proportion to its width (Erdos-Renyi-Kernel),
            "uniform" the same share of every layer, "global" as it falls.
        seed: of the first mask (the run's own seed).
    """

    def __init__(
        self,
        *,
        growing_rate: float = 0.3,
        delta_t: int = 100,
        update_end: float = 0.75,
        distribution: Distribution = "erk",
        seed: int = 333,
    ) -> None:
        super().__init__(growing_rate, delta_t, distribution, seed)
        if not 0 < update_end <= 1:
            raise ValueError(f"update_end must lie in (0, 1]; {update_end} was given")
        self.update_end = update_end

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        return magnitudes(network)

    def grow_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        """Returns |dL/dw| of every weight, the masked ones included."""
        gradients, _ = accumulate_gradients(network, batches)
        return {name: gradient.abs() for name, gradient in gradients.items()}

    def update_share(self, progress: float) -> float:
        if progress >= self.update_end:
            return 0.0
        angle = math.pi * progress / self.update_end
        return self.growing_rate / 2 * (1 + math.cos(angle))
