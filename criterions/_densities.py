"""How a number of weights is shared out among layers before any score is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    """Returns how many weights each layer keeps; together they are the budget."""
    shapes = {name: tuple(mask.shape) for name, mask in budget.alive.items()}
    sizes = {name: mask.numel() for name, mask in budget.alive.items()}
    density = budget.keep / sum(sizes.values())
    densities = dict.fromkeys(sizes, density)
    if distribution == "erk":
        densities = erdos_renyi_kernel(shapes, density)
    # Densities are of what was there at the start; no layer can keep more than is left of it.
    left = {name: int(mask.sum()) for name, mask in budget.alive.items()}
    of_what_is_left = {}
    for name, size in sizes.items():
        of_what_is_left[name] = densities[name] * size / max(1, left[name])
    return exact_quotas(left, of_what_is_left, budget.keep)


def random_scores(weights: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], seed: int) -> dict[str, Tensor]:
    """Returns a random order of all weights, the same for the same seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for name, weight in dict(weights).items():
        scores[name] = torch.rand(weight.shape, generator=generator, dtype=torch.float64)
    return scores


def erdos_renyi_kernel(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """Returns densities per layer, in proportion to sum(shape) / prod(shape), that together give `density`.

    Layers that would pass 1 are dense and the others share the rest (RigL's ERK, arXiv:1911.11134).
    """
    size = {name: float(torch.Size(shape).numel()) for name, shape in shapes.items()}
    raw = {name: sum(shape) / size[name] for name, shape in shapes.items()}
    total = density * sum(size.values())
    dense: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in dense]
        if not rest:
            return dict.fromkeys(shapes, 1.0)
        budget = total - sum(size[name] for name in dense)
        scale = budget / sum(raw[name] * size[name] for name in rest)
        over = [name for name in rest if raw[name] * scale > 1]
        if not over:
            break
        # What they cannot take goes to the others, so some of these may pass 1 now.
        dense.update(over)
    densities = {name: raw[name] * scale for name in shapes}
    densities.update(dict.fromkeys(dense, 1.0))
    return densities


def exact_quotas(sizes: Mapping[str, int], densities: Mapping[str, float], total: int) -> dict[str, int]:
    """Returns whole numbers per layer close to size * density that add up to exactly `total` where the sizes allow it.

    Largest remainders are rounded up first; each layer keeps at least one, unless its size is 0.
    """
    wanted = {name: size * densities[name] for name, size in sizes.items()}
    quotas = {}
    for name, size in sizes.items():
        rounded_down = max(1, int(wanted[name]))
        quotas[name] = min(size, rounded_down)
    while (missing := total - sum(quotas.values())) != 0:
        step = 1 if missing > 0 else -1
        movable = []
        for name, size in sizes.items():
            least = min(1, size)
            if least <= quotas[name] + step <= size:
                movable.append(name)
        if not movable:
            break
        movable.sort(key=lambda name: step * (quotas[name] - wanted[name]))
        # Many at a time where much is missing, then one each to those furthest from what they should have.
        each = max(1, abs(missing) // len(movable))
        for name in movable[: abs(missing)]:
            room = sizes[name] - quotas[name] if step > 0 else quotas[name] - 1
            quotas[name] += step * min(each, room)
    return quotas
