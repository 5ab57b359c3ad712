from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from pruning import Budget, Criterion, PrunableNetwork, WeightCriterion, select
from pruning.criterion import Batches


class UnstructuredRandom(WeightCriterion):
    """Random weights, an exact number of them: the baseline that every method must beat (arXiv:2009.08576).

    Args:
        seed: of the draw (the run's own seed).
        distribution: "global" draws over all layers together, "uniform" the same share per layer, "erk" in proportion
            to the layer's width (Erdos-Renyi-Kernel, arXiv:1911.11134).
        quotas_of: a weight criterion whose number of weights per layer is taken over; the weights are still random.
    """

    needs_data = False

    def __init__(
        self,
        *,
        seed: int = 333,
        distribution: Literal["global", "uniform", "erk"] = "global",
        quotas_of: Criterion | None = None,
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.distribution = distribution
        self.quotas_of = quotas_of
        self.needs_data = quotas_of is not None and quotas_of.needs_data
        self._model_scores: dict[str, Tensor] = {}

    def targets(self, limit: float) -> list[float]:
        return self.quotas_of.targets(limit) if self.quotas_of else super().targets(limit)

    def weight_scores(self, network: PrunableNetwork, batches: Batches) -> dict[str, Tensor]:
        if self.quotas_of:
            self._model_scores = self.quotas_of.weight_scores(network, batches)
        return {
            name: torch.rand(weight.shape, generator=self.generator, dtype=torch.float64).to(weight.device)
            for name, weight in network.weights()
        }

    def select(self, scores: Mapping[str, Tensor], budget: Budget) -> dict[str, Tensor]:
        if self.quotas_of:
            chosen = self.quotas_of.select(self._model_scores, budget)
            quotas = {name: int(mask.sum()) for name, mask in chosen.items()}
        elif self.distribution == "global":
            return select.keep_top_global(scores, budget)
        else:
            quotas = self._quotas(budget)
        return select.keep_top_per_layer(scores, budget, quotas)

    def _quotas(self, budget: Budget) -> dict[str, int]:
        sizes = {name: int(mask.sum()) for name, mask in budget.alive.items()}
        density = budget.keep / sum(mask.numel() for mask in budget.alive.values())
        densities = dict.fromkeys(sizes, density)
        if self.distribution == "erk":
            densities = select.erdos_renyi_kernel({n: tuple(m.shape) for n, m in budget.alive.items()}, density)
        numel = {name: mask.numel() for name, mask in budget.alive.items()}
        return select.exact_quotas(numel, densities, budget.keep)
