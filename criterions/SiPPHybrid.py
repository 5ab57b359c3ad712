import torch
from torch import Tensor

from criterions._guarantee import CUT, SAMPLED
from criterions._sampling import K, Parts, error_of, inclusion, water_filling
from criterions.SiPPRand import SiPPRand


class SiPPHybrid(SiPPRand):
    """SiPPRand, but a filter keeps its most sensitive weights wherever that has the smaller bound (arXiv:1910.05422).

    The bound of a cut is K times the sum of the sensitivities that go, K = 3. Data without labels.

    Args:
        points: samples of S; as many as the theory asks for at this delta if not given.
        delta: probability with which the theory's promise may fail, above 0 to below 1.
        seed: of the draw (the run's own seed).
    """

    theorem = f"{SAMPLED}; where a filter is cut, {CUT}"

    def _chances(self, sizes: Tensor, parts: Parts, places: int) -> tuple[Tensor, Tensor]:
        alpha = parts.alpha(sizes)
        counts = water_filling(alpha, parts.filters, parts.sums((sizes > 0).double()), places)
        chances, _ = inclusion(sizes, parts, counts)
        best = (counts[parts.of_entry] - parts.ranks(sizes)).clamp(0, 1)  # the last of a part may stay in part only
        cut = (K * parts.sums(sizes * (1 - best)) <= error_of(alpha, counts))[parts.of_entry]
        return torch.where(cut, best, chances), torch.where(cut | (chances == 0), 1.0, 1 / chances)
