"""From scores and a number to keep, to what stays. Every guard stands here, once.

Selection is by rank: "keep k" keeps exactly k, ties are broken by position, and no layer is ever emptied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pruning.errors import UsageError


@dataclass
class Budget:
    """What a selection may keep.

    Args:
        keep: how many units stay, over all layers.
        alive: per layer, a bool tensor of what is still there; what is gone cannot come back.
        slices: layers in which every slice along this dimension keeps one unit, see
            `pruning.modules.weights.normalised_dimension`.
        fixed: layers that keep a number of their own, whatever the ranking says of them; `keep` counts these too.
        least: how many units a layer keeps at least; 1 for those that are not named.
    """

    keep: int
    alive: Mapping[str, Tensor]
    slices: Mapping[str, int] = field(default_factory=dict)
    fixed: Mapping[str, int] = field(default_factory=dict)
    least: Mapping[str, int] = field(default_factory=dict)


# (scores, budget) -> keep-masks
Select = Callable[[Mapping[str, Tensor], Budget], dict[str, Tensor]]


def detached(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns scores without their history; UsageError if they are no tensors by name."""
    by_name = isinstance(scores, Mapping) and all(isinstance(score, Tensor) for score in scores.values())
    if not by_name:
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
        # Scores of what is gone are never looked at.
        not_finite = ~torch.isfinite(score) & mask.to(score.device)
        bad = int(not_finite.count_nonzero())
        if bad:
            advice = ""
            if bool((score[not_finite] == torch.inf).all()):
                advice = " A layer that must stay is marked by keep(module)."
            raise UsageError(
                f"{bad} scores of layer {name!r} are not finite (NaN or infinite); nothing was pruned.{advice}"
            )


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
    missing = n_keep - int(keep.count_nonzero())
    keep[ties[:missing]] = True
    return keep


def nth_smallest(values: Tensor, place: int) -> Tensor:
    """Returns the value at a place of a flat vector once sorted, 0 being the smallest's."""
    if values.device.type == "cpu":
        return torch.kthvalue(values, place + 1).values
    # A GPU refuses kthvalue where deterministic algorithms are asked for, and sorts fast.
    return values.sort().values[place]


def keep_top_global(scores: Mapping[str, Tensor], budget: Budget, min_keep: int = 1) -> dict[str, Tensor]:
    """Ranks over all layers together and keeps exactly `budget.keep`, with `min_keep` of each layer's best among them.

    Where the budget is smaller than the guards need, the guards win.
    """
    flat = _ranking_vector(scores, budget, min_keep)
    at_least = int(torch.isposinf(flat).count_nonzero())
    alive = int((flat > -torch.inf).count_nonzero())
    n_keep = min(max(budget.keep, at_least), alive)
    sizes = [mask.numel() for mask in budget.alive.values()]
    parts = keep_top(flat, n_keep).split(sizes)
    kept = {}
    for (name, mask), part in zip(budget.alive.items(), parts, strict=True):
        kept[name] = part.view(mask.shape).to(mask.device)
    return kept


def keep_top_per_layer(scores: Mapping[str, Tensor], budget: Budget, quotas: Mapping[str, int]) -> dict[str, Tensor]:
    """Keeps the best `quotas[name]` of each layer, at least one and never more than are alive."""
    kept = {}
    for name, mask in budget.alive.items():
        layer = Budget(keep=quotas[name], alive={name: mask}, slices=budget.slices)
        kept.update(keep_top_global(scores, layer))
    return kept


def select_by_layer(select: Select, scores: Mapping[str, Tensor], budget: Budget) -> dict[str, Tensor]:
    """Lets a selection of any kind choose, each layer with a number of its own by itself, the others together.

    A layer that would keep too little of what is left keeps its least, and the selection is made again for the others.
    What is gone stays gone, and no layer is emptied, whatever the selection may say.
    """
    fixed = dict(budget.fixed)
    while True:
        kept: dict[str, Tensor] = {}
        for name, number in fixed.items():
            kept |= _part_of(select, scores, budget, [name], number)
        others = [name for name in budget.alive if name not in fixed]
        kept |= _part_of(select, scores, budget, others, budget.keep - count(kept))
        too_few = {}
        for name in others:
            least = min(budget.least.get(name, 0), count({name: budget.alive[name]}))
            if count({name: kept[name]}) < least:
                too_few[name] = least
        if not too_few:
            return {name: kept[name] for name in budget.alive}
        fixed |= too_few


def _part_of(
    select: Select, scores: Mapping[str, Tensor], budget: Budget, names: Sequence[str], number: int
) -> dict[str, Tensor]:
    """Returns what a selection keeps of some layers."""
    if not names:
        return {}
    own = {name: scores[name] for name in names}
    alive = {name: budget.alive[name] for name in names}
    part = Budget(max(0, number), alive, budget.slices)
    return guarded(select(own, part), own, part)


def count(masks: Mapping[str, Tensor]) -> int:
    """Returns how many entries of keep-masks are True."""
    return sum(int(mask.count_nonzero()) for mask in masks.values())


def guarded(keep: Mapping[str, Tensor], scores: Mapping[str, Tensor], budget: Budget) -> dict[str, Tensor]:
    """Returns a selection of any kind with the guards applied: nothing gone comes back, no layer is emptied."""
    safe = {}
    for name, mask in budget.alive.items():
        kept = keep[name].to(mask.device, torch.bool) & mask
        empty = _emptied(kept, budget.slices.get(name))
        if bool(empty.any()):
            least = keep_top_global(scores, Budget(1, {name: mask}, budget.slices))[name]
            kept = kept | (least & empty)
        safe[name] = kept
    return safe


def _emptied(kept: Tensor, dimension: int | None) -> Tensor:
    """Says of a layer, or of each of its slices along a dimension, whether nothing of it is kept."""
    if dimension is None:
        return ~kept.any()
    others = [dim for dim in range(kept.dim()) if dim != dimension]
    # Of a vector each entry is a slice of its own.
    return ~kept.any(dim=others, keepdim=True) if others else ~kept


def _ranking_vector(scores: Mapping[str, Tensor], budget: Budget, min_keep: int) -> Tensor:
    """One flat vector: what is gone at -inf, each layer's best at +inf (they would stay anyway, or must)."""
    dtype = _ranking_dtype(scores)
    parts: list[Tensor] = []
    # The guard changes nothing for a layer that keeps any weight: its best is then among those kept already.
    for name, mask in budget.alive.items():
        part = scores[name].detach()
        if part.device.type == "mps":  # which has no double precision
            part = part.cpu()
        part = part.to(dtype).flatten()
        gone = ~mask.flatten().to(part.device)
        part = part.masked_fill(gone, -torch.inf)
        n_alive = int((part > -torch.inf).count_nonzero())
        best = keep_top(part, min(min_keep, n_alive))
        if name in budget.slices:
            best |= _best_of_slices(part.view(mask.shape), budget.slices[name])
        parts.append(part.masked_fill(best, torch.inf))
    if not parts:
        return torch.empty(0)
    # Layers of a network may lie on several devices.
    device = parts[0].device
    return torch.cat([part.to(device) for part in parts])


def _ranking_dtype(scores: Mapping[str, Tensor]) -> torch.dtype:
    for score in scores.values():
        # Whole numbers above 2**24 are not all there in single precision.
        if score.dtype == torch.float64 or not score.is_floating_point():
            return torch.float64
    return torch.float32


def _best_of_slices(part: Tensor, dimension: int) -> Tensor:
    """A flat bool tensor: the highest score of each slice along a dimension, where the slice has any left."""
    places = torch.arange(part.numel(), device=part.device).view(part.shape)
    places = places.movedim(dimension, 0).flatten(1)  # (slices, entries of a slice)
    rows = part.movedim(dimension, 0).flatten(1)
    winners = places.gather(1, rows.argmax(1, keepdim=True)).flatten()
    best = torch.zeros(part.numel(), dtype=torch.bool, device=part.device)
    best[winners] = part.flatten()[winners] > -torch.inf
    return best
