"""Drawing what stays with probabilities: without bias, and in exactly the number that was asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

K = 3.0  # the papers' constant: how much larger a fresh point's share may be than the largest one over S
SAFE = 1e-9  # probabilities this near to 0 or 1 are settled


@dataclass
class Parts:
    """Parts of a flat vector of sensitivities: the entries of one filter and sign.

    Args:
        of_entry: (n,) number of the part of each entry.
        scales: (parts,) what the papers multiply the sum of a part's sensitivities by, 2 K ln(8 (P + 1) k / delta).
        filters: (parts,) number of filters of the part's layer.
    """

    of_entry: Tensor
    scales: Tensor
    filters: Tensor

    @classmethod
    def of(cls, layers: Sequence[tuple[Tensor, float]]) -> Parts:
        """Joins layers, each given by numbers of parts (from 0, two a filter) and a scale."""
        numbers, counts, scales = [], [], []
        start = 0
        for part, scale in layers:
            filters = int(part.max()) // 2 + 1  # the last one may have no negative weights
            numbers.append(part + start)
            counts.append(2 * filters)
            scales.append(scale)
            start += 2 * filters
        of_layer = torch.tensor(counts)
        scale_of_part = torch.tensor(scales, dtype=torch.float64).repeat_interleave(of_layer)
        filters_of_part = (of_layer / 2).double().repeat_interleave(of_layer)
        return cls(torch.cat(numbers), scale_of_part, filters_of_part)

    def sums(self, values: Tensor) -> Tensor:
        """Returns the sum per part."""
        return torch.zeros(len(self.scales), dtype=values.dtype).index_add_(0, self.of_entry, values)

    def alpha(self, sizes: Tensor) -> Tensor:
        """Returns the numerator of each part's error, see `error_of`."""
        return (self.sums(sizes) * self.scales).clamp_min(1e-200)

    def ranks(self, sizes: Tensor) -> Tensor:
        """Returns each entry's place in its part, the largest being at 0, ties in order of position."""
        order = torch.sort(-sizes, stable=True).indices
        # Parts one after the other, each from its largest entry down.
        order = order[torch.sort(self.of_entry[order], stable=True).indices]
        counts = torch.bincount(self.of_entry, minlength=len(self.scales))
        starts = counts.cumsum(0) - counts
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(len(order)) - starts[self.of_entry[order]]
        return ranks


def draw(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a bool tensor; entry j is True with probability j, and their number is the sum of all probabilities.

    A knockout (pivotal sampling): two entries meet, one takes over as much of the other's probability as it can, so
    that one of the two is settled and both expectations stay. Entries that stand side by side meet first, so each
    stretch of the tensor gets its own share within about one. Entries are negatively dependent (strongly Rayleigh),
    so the Chernoff and Bernstein bounds of independent draws hold for their sums.

    Args:
        probabilities: flat, float64, on the CPU.
        generator: of random numbers.
    """
    chance = probabilities.clone()
    playing = _unsettled(chance).nonzero().flatten()
    while len(playing) > 1:
        pairs = len(playing) // 2
        one, other = playing[: 2 * pairs].view(pairs, 2).unbind(1)
        total = chance[one] + chance[other]
        # Together at most 1: the winner takes all, the loser is out. Else the winner stays, the loser has the rest.
        little = total <= 1
        winners = torch.where(little, total, 1.0)
        losers = torch.where(little, 0.0, total - 1)
        odds = torch.where(little, chance[one] / total, (1 - chance[other]) / (2 - total))
        first = torch.rand(pairs, generator=generator, dtype=torch.float64) < odds
        chance[one] = torch.where(first, winners, losers)
        chance[other] = torch.where(first, losers, winners)
        playing = playing[_unsettled(chance[playing])]
    return chance > 0.5


def _unsettled(chance: Tensor) -> Tensor:
    return (chance > SAFE) & (chance < 1 - SAFE)


def inclusion(sizes: Tensor, parts: Parts, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Returns probabilities min(1, M_q s_j / S_q) that add up to the count of each part, and M_q per part.

    M_q is the number of samples in the papers' sense: what one sample may contribute is at most S_q / M_q.

    Args:
        sizes: (n,) s, at least 0, float64.
        parts: which part q each belongs to.
        counts: (parts,) how many of each part stay on average, at most as many as have s > 0.
    """
    of_entry = parts.of_entry
    shares = sizes / parts.sums(sizes).clamp_min(1e-300)[of_entry]
    # The count of a part rises with log M_q, so that is found by bisection.
    low, high = torch.full_like(counts, -50.0), torch.full_like(counts, 100.0)
    for _ in range(60):
        middle = (low + high) / 2
        probabilities = (middle.exp()[of_entry] * shares).clamp_max(1)
        enough = parts.sums(probabilities) >= counts
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    samples = torch.where(counts > 0, high.exp(), 0.0)
    return (samples[of_entry] * shares).clamp_max(1), samples


def water_filling(alpha: Tensor, per: Tensor, most: Tensor, budget: float) -> Tensor:
    """Returns sample counts m per part that minimise sum e(m) / per with sum m = budget, 0 <= m <= most.

    At the minimum every part that is not at its bounds gains the same by one more sample. With x = 1 / e(m), that gain
    fixes 3 x^3 + x^2, so each multiplier leaves one cubic equation a part, and bisection finds the multiplier.

    Args:
        alpha: (parts,) float64, above 0, see `error_of`.
        per: (parts,) number of filters of the part's layer.
        most: (parts,) entries of the part.
        budget: entries that stay in all.
    """
    if budget >= float(most.sum()):
        return most.clone()

    def counts(multiplier: float) -> Tensor:
        steep = K / (alpha * multiplier * per)
        root = torch.minimum((steep / 3) ** (1 / 3), steep.sqrt())  # above the root by less than half of it
        for _ in range(8):  # Newton's method comes down to the root of a convex function
            root = root - (3 * root**3 + root**2 - steep) / (9 * root**2 + 2 * root)
        samples = alpha * (3 * root**2 + 2 * root) / (2 * K)
        return torch.minimum(samples, most)

    low, high = -150.0, 150.0
    for _ in range(80):
        middle = (low + high) / 2
        if float(counts(math.exp(middle)).sum()) > budget:
            low = middle
        else:
            high = middle
    more, fewer = counts(math.exp(low)), counts(math.exp(high))
    # The budget lies between the two; parts that are left out there get the rest in proportion.
    gap = float((more - fewer).sum())
    share = (budget - float(fewer.sum())) / gap if gap > 0 else 0.0
    return fewer + (more - fewer) * share


def error_of(alpha: Tensor, samples: Tensor) -> Tensor:
    """Returns SiPP's error e(m) of parts with so many samples (arXiv:1910.05422), infinite without any."""
    ratio = alpha / (K * samples.clamp_min(1e-300))
    return (ratio + (ratio.square() + 6 * ratio).sqrt()) / 2


def expected_distinct(shares: Tensor, samples: Tensor) -> Tensor:
    """Returns how many different entries so many draws with replacement hit on average, for each number of draws."""
    log_missed_by_one = torch.log1p(-shares.clamp_max(1 - 1e-15))
    # expm1 of a logarithm is minus the probability to be hit, without loss where that is tiny.
    missed = (samples[:, None] * log_missed_by_one[None]).expm1()
    return -missed.sum(1)


def draws_for(shares: Tensor, counts: Tensor) -> Tensor:
    """Returns the logarithm of the number of draws with replacement that hit so many entries on average.

    Args:
        shares: (n,) probabilities of the entries, float64.
        counts: (k,) expected numbers, 0 to n; what cannot be reached gives the end of the scale, 100.
    """
    low, high = torch.full_like(counts, -50.0), torch.full_like(counts, 100.0)
    for _ in range(50):
        middle = (low + high) / 2
        # A table of all counts by all entries would be large.
        distinct = [expected_distinct(shares, part.exp()) for part in middle.split(256)]
        enough = torch.cat(distinct) > counts
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high
