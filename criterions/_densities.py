"""How a number of weights is shared out among layers before any score is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from pruning import Budget, select

Distribution = Literal["global", "uniform", "erk"]


def keep_by(distribution: Distribution, scores: Mapping[str, Tensor], budget: Budget) -> dict[str, Tensor]:
    """Returns keep-masks of the best `budget.keep` weights, as many of each layer as the distribution says.

    Args:
        distribution: "global" ranks over all layers together; "uniform" keeps the same share of every layer; "erk" one
            in proportion to its width (Erdos-Renyi-Kernel, arXiv:1911.11134): of a linear layer (outputs + inputs) /
            (outputs * inputs), as in SET (arXiv:1707.04780), of a convolution with its kernel's sides in both.
        scores: of every weight.
        budget: what may stay, and what is still there.
    """
    if distribution == "global":
        return select.keep_top_global(scores, budget)
    return select.keep_top_per_layer(scores, budget, _quotas(distribution, budget))


def _quotas(distribution: Distribution, budget: Budget) -> dict[str, int]:
    sizes = {name: mask.numel() for name, mask in budget.alive.items()}
    density = budget.keep / sum(sizes.values())
    densities = dict.fromkeys(sizes, density)
    if distribution == "erk":
        densities = select.erdos_renyi_kernel({n: tuple(m.shape) for n, m in budget.alive.items()}, density)
    # Densities are of what was there at the start; no layer can keep more than is left of it.
    left = {name: int(mask.sum()) for name, mask in budget.alive.items()}
    return select.exact_quotas(left, {n: densities[n] * sizes[n] / max(1, left[n]) for n in sizes}, budget.keep)


def random_scores(weights: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], seed: int) -> dict[str, Tensor]:
    """Returns a random order of all weights, the same for the same seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(w.shape, generator=generator, dtype=torch.float64) for n, w in dict(weights).items()}
