"""From scores and a number to keep, to what stays. Every guard stands here, once.

Selection is by rank: "keep k" keeps exactly k, ties are broken by position, and no layer is ever emptied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pruning.errors import UsageError


@dataclass
class Budget:
    """What a selection may keep.

    keep: how many units stay, over all layers.
    alive: per layer, a bool tensor of what is still there; what is gone cannot come back.
    slices: layers in which every slice along this dimension keeps one unit, see `prunable.normalised_dimension`.
    """

    keep: int
    alive: Mapping[str, Tensor]
    slices: Mapping[str, int] = field(default_factory=dict)


def detached(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns scores without their history; UsageError if they are no tensors by name."""
    if not isinstance(scores, Mapping) or not all(isinstance(score, Tensor) for score in scores.values()):
        raise UsageError(f"Scores of weights are a dict of tensors by parameter name, not a {type(scores).__name__}.")
    return {name: score.detach() for name, score in scores.items()}


def check_scores(scores: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> None:
    """Raises UsageError if a score is missing, misshapen, complex or not finite; the message names the layer."""
    for name, mask in alive.items():
        if name not in scores:
            raise UsageError(f"The criterion gave no scores for {name!r}; every prunable weight needs them.")
        score = scores[name]
        if score.shape != mask.shape:
            given, fits = tuple(score.shape), tuple(mask.shape)
            raise UsageError(f"The scores of {name!r} have shape {given}; its weight has {fits}.")
        if score.is_complex():
            raise UsageError(f"The scores of {name!r} are complex numbers, which have no order; scores must be real.")
        bad = int((~torch.isfinite(score) & mask.to(score.device)).count_nonzero())
        if bad:
            raise UsageError(f"{bad} scores of layer {name!r} are not finite (NaN or infinite); nothing was pruned.")


def keep_top(scores: Tensor, n_keep: int) -> Tensor:
    """Returns a bool tensor that keeps exactly the `n_keep` largest of a flat score vector.

    Ties stay in order of position. On the CPU it is linear in the number of scores.
    """
    n_keep = max(0, min(n_keep, scores.numel()))
    if n_keep in (0, scores.numel()):
        return torch.full_like(scores, n_keep > 0, dtype=torch.bool)
    if n_keep == 1:  # the guard of every layer, each time: the first of the largest, without a selection
        keep = torch.zeros_like(scores, dtype=torch.bool)
        keep[scores.argmax()] = True
        return keep
    threshold = nth_smallest(scores, scores.numel() - n_keep)
    keep = scores > threshold
    ties = (scores == threshold).nonzero().flatten()
    keep[ties[: n_keep - int(keep.count_nonzero())]] = True
    return keep


def nth_smallest(values: Tensor, place: int) -> Tensor:
    """Returns the value at a place of a flat vector once sorted, 0 being the smallest's."""
    # A GPU refuses kthvalue where deterministic algorithms are asked for, and sorts fast.
    on_cpu = values.device.type == "cpu"
    return torch.kthvalue(values, place + 1).values if on_cpu else values.sort().values[place]


def keep_top_global(scores: Mapping[str, Tensor], budget: Budget, min_keep: int = 1) -> dict[str, Tensor]:
    """Ranks over all layers together and keeps exactly `budget.keep`, with `min_keep` of each layer's best among them.

    Where the budget is smaller than the guards need, the guards win.
    """
    flat = _ranking_vector(scores, budget, min_keep)
    at_least = int(torch.isposinf(flat).count_nonzero())
    alive = int((flat > -torch.inf).count_nonzero())
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
        layer = Budget(keep=quotas[name], alive={name: mask}, slices=budget.slices)
        kept.update(keep_top_global(scores, layer))
    return kept


def guarded(keep: Mapping[str, Tensor], scores: Mapping[str, Tensor], budget: Budget) -> dict[str, Tensor]:
    """Returns a selection of any kind with the guards applied: nothing gone comes back, no layer is emptied."""
    safe = {}
    for name, mask in budget.alive.items():
        kept = keep[name].to(mask.device, torch.bool) & mask
        slices = [d for d in range(mask.dim()) if d != budget.slices[name]] if name in budget.slices else None
        empty = ~(kept.any() if slices is None else kept.any(dim=slices, keepdim=True) if slices else kept)
        if bool(empty.any()):
            least = keep_top_global(scores, Budget(1, {name: mask}, budget.slices))[name]
            kept = kept | (least & empty)
        safe[name] = kept
    return safe


def _ranking_vector(scores: Mapping[str, Tensor], budget: Budget, min_keep: int) -> Tensor:
    """One flat vector: what is gone at -inf, each layer's best at +inf (they would stay anyway, or must)."""
    # Whole numbers above 2**24 are not all there in single precision.
    exact = [s.dtype == torch.float64 or not s.is_floating_point() for s in scores.values()]
    dtype = torch.float64 if any(exact) else torch.float32
    parts: list[Tensor] = []
    # The guard changes nothing for a layer that keeps any weight: its best is then among those kept already.
    for name, mask in budget.alive.items():
        part = scores[name].detach()
        part = part.to("cpu" if part.device.type == "mps" else part.device).to(dtype).flatten()
        part = part.masked_fill(~mask.flatten().to(part.device), -torch.inf)
        best = keep_top(part, min(min_keep, int((part > -torch.inf).count_nonzero())))
        if name in budget.slices:
            best |= _best_of_slices(part.view(mask.shape), budget.slices[name])
        parts.append(part.masked_fill(best, torch.inf))
    device = parts[0].device if parts else None
    return torch.cat([part.to(device) for part in parts]) if parts else torch.empty(0)


def _best_of_slices(part: Tensor, dimension: int) -> Tensor:
    """A flat bool tensor: the highest score of each slice along a dimension, where the slice has any left."""
    places = torch.arange(part.numel(), device=part.device).view(part.shape).movedim(dimension, 0).flatten(1)
    rows = part.movedim(dimension, 0).flatten(1)
    winners = places.gather(1, rows.argmax(1, keepdim=True)).flatten()
    best = torch.zeros(part.numel(), dtype=torch.bool, device=part.device)
    best[winners] = part.flatten()[winners] > -torch.inf
    return best
