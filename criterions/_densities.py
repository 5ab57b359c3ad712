"""How a number of weights is shared out among layers before any score is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pruning import Budget, select


def layer_quotas(budget: Budget, distribution: str) -> dict[str, int]:
    """Returns how many weights each layer keeps, `budget.keep` in all.

    Args:
        budget: what may stay, and what is still there.
        distribution: "uniform", the same share of every layer, or "erk", in proportion to its width (Erdos-Renyi-
            Kernel, arXiv:1911.11134): a linear layer keeps a share proportional to (outputs + inputs) / (outputs *
            inputs), as in SET (arXiv:1707.04780), a convolution one that counts its kernel's sides too.
    """
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
