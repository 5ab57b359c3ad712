import math
from collections.abc import Mapping

import torch
from torch import Tensor

from criterions._guarantee import SAMPLED
from criterions._points import outputs_of_layers
from criterions._sampling import Parts, draw, inclusion, water_filling
from criterions.SiPP import SiPP, parts_of
from pruning import Batches, Budget, PrunableState, select


class SiPPRand(SiPP):
    """Weights drawn in proportion to their sensitivity and re-weighted, without bias (arXiv:1910.05422).

    The weights of a filter and sign are a part; parts share the budget so that the sum of their error bounds is
    smallest, and each weight that stays is divided by its probability to stay. The draw is without replacement, in
    exactly the number asked for; its bound is that of the paper's draw with replacement. Data without labels.

    Args:
        points: samples of S; as many as the theory asks for at this delta if not given.
        delta: probability with which the theory's promise may fail, above 0 to below 1.
        seed: of the draw (the run's own seed).
    """

    over_positions = "max"
    theorem = SAMPLED

    def __init__(self, *, points: int | None = None, delta: float = 1e-16, seed: int = 333) -> None:
        super().__init__(points=points, delta=delta)
        self.seed = seed
        self._layers: dict[str, tuple[Tensor, float]] = {}

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        outputs = outputs_of_layers(network)
        for name, weight in network.weights():
            positions, kernel = outputs[name] / weight.shape[0], math.prod(weight.shape[2:])
            scale = 6 * math.log(8 * (positions + 1) * kernel / self.delta)
            self._layers[name] = (parts_of(network, name), scale)
        return super().weight_scores(network, batches)

    def select(self, scores: Mapping[str, Tensor], budget: Budget) -> dict[str, Tensor]:
        nothing = {name: torch.zeros_like(mask) for name, mask in budget.alive.items()}
        least = select.guarded(nothing, scores, budget)
        sizes = torch.cat([_sizes(scores[name], mask & ~least[name]) for name, mask in budget.alive.items()])
        places = budget.keep - sum(int(mask.count_nonzero()) for mask in least.values())
        if not 0 < places < int(sizes.count_nonzero()):  # what no output feels is ranked, never drawn
            return select.keep_top_global(scores, budget)
        chances, factors = self._chances(sizes, Parts.of([self._layers[name] for name in budget.alive]), places)
        drawn = draw(chances, torch.Generator().manual_seed(self.seed))
        lengths = [mask.numel() for mask in least.values()]
        for name, factor in zip(least, factors.split(lengths), strict=True):
            self._factors[name] = factor.view(least[name].shape)
        pieces = zip(least.items(), drawn.split(lengths), strict=True)
        return {name: mask | part.view(mask.shape).to(mask.device) for (name, mask), part in pieces}

    def _chances(self, sizes: Tensor, parts: Parts, places: int) -> tuple[Tensor, Tensor]:
        """Returns each weight's probability to stay, and what it is multiplied by if it does."""
        counts = water_filling(parts.alpha(sizes), parts.filters, parts.sums((sizes > 0).double()), places)
        chances, _ = inclusion(sizes, parts, counts)
        return chances, torch.where(chances > 0, 1 / chances, 1.0)


def _sizes(scores: Tensor, pool: Tensor) -> Tensor:
    # Under an inverted ranking the least sensitive are the most likely to stay.
    sizes = scores.detach().cpu().double()
    return (sizes - min(0.0, float(sizes.min()))).masked_fill(~pool.cpu(), 0).flatten()
