"""From scores and a number to keep, to what stays. Every guard stands here, once.

Selection is by rank: "keep k" keeps exactly k, ties are broken by position, and no layer is ever emptied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.errors import UsageError


@dataclass
class Budget:
    """What a selection may keep.

    keep: how many units stay, over all layers.
    alive: per layer, a bool tensor of what is still there; what is gone cannot come back.
    """

    keep: int
    alive: Mapping[str, Tensor]


def check_scores(scores: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> None:
    """Raises UsageError if a score is missing, misshapen or not finite; the message names the layer."""
    for name, mask in alive.items():
        if name not in scores:
            raise UsageError(f"The criterion gave no scores for {name!r}; every prunable weight needs them.")
        score = scores[name]
        if score.shape != mask.shape:
            given, fits = tuple(score.shape), tuple(mask.shape)
            raise UsageError(f"The scores of {name!r} have shape {given}; its weight has {fits}.")
        bad = int((~torch.isfinite(score) & mask.to(score.device)).sum())
        if bad:
            raise UsageError(f"{bad} scores of layer {name!r} are not finite (NaN or infinite); nothing was pruned.")


def keep_top(scores: Tensor, n_keep: int) -> Tensor:
    """Returns a bool tensor that keeps exactly the `n_keep` largest of a flat score vector.

    Ties stay in order of position. Uses one k-th value, so it is linear in the number of scores.
    """
    n_keep = max(0, min(n_keep, scores.numel()))
    if n_keep in (0, scores.numel()):
        return torch.full_like(scores, n_keep > 0, dtype=torch.bool)
    threshold = torch.kthvalue(scores, scores.numel() - n_keep + 1).values
    keep = scores > threshold
    ties = (scores == threshold).nonzero().flatten()
    keep[ties[: n_keep - int(keep.sum())]] = True
    return keep


def keep_top_global(scores: Mapping[str, Tensor], budget: Budget, min_keep: int = 1) -> dict[str, Tensor]:
    """Ranks over all layers together and keeps exactly `budget.keep`, with `min_keep` of each layer's best among them.

    Where the budget is smaller than the guards need, the guards win.
    """
    flat = _ranking_vector(scores, budget.alive, min_keep)
    at_least = int(torch.isposinf(flat).sum())
    alive = int((flat > -torch.inf).sum())
    keep = keep_top(flat, min(max(budget.keep, at_least), alive))
    sizes = [mask.numel() for mask in budget.alive.values()]
    return {
        name: part.view(mask.shape).to(mask.device)
        for (name, mask), part in zip(budget.alive.items(), keep.split(sizes), strict=True)
    }


def keep_top_per_layer(scores: Mapping[str, Tensor], budget: Budget, quotas: Mapping[str, int]) -> dict[str, Tensor]:
    """Keeps the best `quotas[name]` of each layer, at least one and never more than are alive."""
    kept = {}
    for name, mask in budget.alive.items():
        layer = Budget(keep=quotas[name], alive={name: mask})
        kept.update(keep_top_global(scores, layer))
    return kept


def _ranking_vector(scores: Mapping[str, Tensor], alive: Mapping[str, Tensor], min_keep: int) -> Tensor:
    """One flat vector: what is gone at -inf, each layer's best at +inf (they would stay anyway, or must)."""
    dtype = torch.float64 if any(s.dtype == torch.float64 for s in scores.values()) else torch.float32
    parts: list[Tensor] = []
    # The guard changes nothing for a layer that keeps any weight: its best is then among those kept already.
    for name, mask in alive.items():
        part = scores[name].detach().to(dtype).flatten()
        part = part.masked_fill(~mask.flatten().to(part.device), -torch.inf)
        there = int((part > -torch.inf).sum())
        best = keep_top(part, min(min_keep, there))
        parts.append(part.masked_fill(best, torch.inf))
    device = parts[0].device if parts else None
    return torch.cat([part.to(device) for part in parts]) if parts else torch.empty(0)


def erdos_renyi_kernel(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """Returns densities per layer, in proportion to sum(shape) / prod(shape), that together give `density`.

    Layers that would pass 1 are dense and the others share the rest (RigL's ERK, arXiv:1911.11134).
    """
    size = {name: float(torch.Size(shape).numel()) for name, shape in shapes.items()}
    raw = {name: sum(shape) / size[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in dense]
        budget = density * sum(size.values()) - sum(size[name] for name in dense)
        scale = budget / sum(raw[name] * size[name] for name in rest) if rest else 0.0
        over = [name for name in rest if raw[name] * scale > 1]
        if not over:
            return {name: 1.0 if name in dense else raw[name] * scale for name in shapes}
        dense.update(over)


def exact_quotas(sizes: Mapping[str, int], densities: Mapping[str, float], total: int) -> dict[str, int]:
    """Returns whole numbers per layer close to size * density that add up to exactly `total` where the sizes allow it.

    Largest remainders are rounded up first; each layer keeps at least one.
    """
    wanted = {name: size * densities[name] for name, size in sizes.items()}
    quotas = {name: max(1, min(sizes[name], int(wanted[name]))) for name in sizes}
    order = sorted(sizes, key=lambda name: quotas[name] - wanted[name])
    missing = total - sum(quotas.values())
    step = 1 if missing > 0 else -1
    while missing:
        movable = [name for name in order if 1 <= quotas[name] + step <= sizes[name]][: abs(missing)]
        if not movable:
            break
        for name in movable:
            quotas[name] += step
        missing -= step * len(movable)
        order.sort(key=lambda name: step * (quotas[name] - wanted[name]))
    return quotas
