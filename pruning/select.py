"""From scores and a number to keep, to what stays. Every guard stands here, once.

Selection is by rank: "keep k" keeps exactly k, ties are broken by position, and no layer is ever emptied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pruning.errors import UsageError

Ranking = Literal["global", "local"]
Target = Literal["nodes", "weights", "flops", "latency"]


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

    Largest remainders are rounded up first; each layer keeps at least one, unless its size is 0.
    """
    wanted = {name: size * densities[name] for name, size in sizes.items()}
    quotas = {name: min(size, max(1, int(wanted[name]))) for name, size in sizes.items()}
    missing = total - sum(quotas.values())
    while missing:
        step = 1 if missing > 0 else -1
        movable = [name for name in sizes if min(1, sizes[name]) <= quotas[name] + step <= sizes[name]]
        movable.sort(key=lambda name: step * (quotas[name] - wanted[name]))
        # Many at a time where much is missing, then one each to those furthest from what they should have.
        each = max(1, abs(missing) // max(1, len(movable)))
        for name in movable[: abs(missing)]:
            room = sizes[name] - quotas[name] if step > 0 else quotas[name] - 1
            quotas[name] += step * min(each, room)
        if not movable:
            break
        missing = total - sum(quotas.values())
    return quotas


@dataclass
class Layout:
    """How nodes may be chosen.

    Args:
        groups: (nodes,) the group of each node, 0, 1, ...; a group is a layer with what is coupled to it.
        min_keep: nodes that every group keeps at least, where it has as many; one number or one per group.
        multiples: (groups,) the number kept of each group is a multiple of this, or all of it.
        local: the same share of every group, instead of one ranking over all.
        fixed: (nodes,) bool, nodes that cannot go.
    """

    groups: np.ndarray
    min_keep: int | np.ndarray = 1
    multiples: np.ndarray | None = None
    local: bool = False
    fixed: Tensor | None = None

    def keep(self, scores: Tensor, n_keep: int) -> Tensor:
        """Returns a bool tensor over nodes that keeps the best `n_keep`, or as near as the guards allow."""
        lowest = self.counts(self._stay(scores))
        if self.local:
            counts = _same_share(self.sizes, lowest, n_keep)
        else:
            # Equal scores of different groups take turns, by the share of the group that is better.
            protected = -scores.masked_fill(self._stay(scores), torch.inf).numpy()
            order = np.lexsort((self._places(scores) / self.sizes[self.groups], protected))
            counts = np.bincount(self.groups[order[: max(n_keep, int(lowest.sum()))]], minlength=len(self.sizes))
        if self.multiples is not None:
            counts = _in_multiples(counts, lowest, self.sizes, self.multiples, n_keep)
        return self.best(scores, counts)

    def keep_above(self, scores: Tensor, threshold: float) -> Tensor:
        """Returns a bool tensor over nodes that keeps those at or above a threshold, and what must stay."""
        keep = (scores >= threshold) | self._stay(scores)
        if self.multiples is None:
            return keep
        counts = -(-self.counts(keep) // self.multiples) * self.multiples
        return self.best(scores, np.minimum(counts, self.sizes))

    def fix(self, nodes: np.ndarray, scores: Tensor) -> None:
        """Keeps the better half of these nodes of each group from now on, one at least."""
        fixed = torch.zeros(len(self.groups), dtype=torch.bool) if self.fixed is None else self.fixed.clone()
        for group in np.unique(self.groups[nodes]):
            own = torch.from_numpy(nodes[self.groups[nodes] == group])
            order = torch.sort(-scores[own], stable=True).indices
            fixed[own[order[: (len(own) + 1) // 2]]] = True
        self.fixed = fixed

    def fixed_groups(self) -> list[int]:
        """Returns the groups of which some nodes cannot go."""
        return [] if self.fixed is None else np.unique(self.groups[self.fixed.numpy()]).tolist()

    def release(self, group: int) -> Tensor | None:
        """Lets a group's nodes go again; returns what was fixed before."""
        before = self.fixed
        if before is not None:
            self.fixed = before & torch.from_numpy(self.groups != group)
        return before

    def effective(self, scores: Tensor) -> Tensor:
        """Returns the threshold above which each node is gone: its score, infinity for what must stay."""
        return scores.masked_fill(self._stay(scores), torch.inf)

    def counts(self, kept: Tensor) -> np.ndarray:
        """Returns how many nodes a choice keeps of each group."""
        return np.bincount(self.groups[kept.numpy()], minlength=len(self.sizes))

    def best(self, scores: Tensor, counts: np.ndarray | int) -> Tensor:
        """Marks the best nodes of each group, fixed ones first; ties stay in order of position.

        Args:
            scores: (nodes,) on the CPU.
            counts: how many of each group, one number or one per group.
        """
        least = counts[self.groups] if isinstance(counts, np.ndarray) else counts
        return torch.from_numpy(self._places(scores) < least)

    @property
    def sizes(self) -> np.ndarray:
        """How many nodes each group has."""
        return np.bincount(self.groups)

    def describe(self) -> str:
        """Says which guard keeps a number of nodes from being reached."""
        if self.multiples is not None and int(self.multiples.max(initial=1)) > 1:
            return f"widths are multiples of {int(self.multiples.max())}"
        if isinstance(self.min_keep, np.ndarray):
            return "every layer keeps a share of its nodes"
        return f"every layer keeps {self.min_keep}" if self.min_keep > 1 else "no layer is emptied"

    def _places(self, scores: Tensor) -> np.ndarray:
        """Returns (nodes,) the place of each node in its group, from 0, the best and fixed ones first."""
        first = scores if self.fixed is None else scores.masked_fill(self.fixed, torch.inf)
        order = torch.sort(-first, stable=True).indices.numpy()
        by_group = order[np.argsort(self.groups[order], kind="stable")]
        places = np.empty(len(order), dtype=np.int64)
        places[by_group] = np.arange(len(order)) - (self.sizes.cumsum() - self.sizes)[self.groups[by_group]]
        return places

    def _stay(self, scores: Tensor) -> Tensor:
        """Marks what no choice may take: each group's best, and what is fixed."""
        best = self.best(scores, self.min_keep)
        return best if self.fixed is None else best | self.fixed


def _same_share(sizes: np.ndarray, lowest: np.ndarray, total: int) -> np.ndarray:
    """Returns whole numbers per group that add up to `total`, in proportion to the sizes where `lowest` allows it.

    Largest remainders are rounded up first, of equal ones the earlier group.
    """
    if total <= lowest.sum():
        return lowest
    low, high = 0.0, 1.0
    # The sum rises with the share; sixty halvings leave nothing of a double.
    for _ in range(60):
        share = (low + high) / 2
        low, high = (share, high) if np.clip(share * sizes, lowest, sizes).sum() < total else (low, share)
    wanted = np.clip(high * sizes, lowest, sizes)
    counts = np.floor(wanted + 1e-9).astype(np.int64)
    missing = min(total, int(sizes.sum())) - int(counts.sum())
    counts[np.argsort(counts - wanted, kind="stable")[:missing]] += 1
    return counts


def _in_multiples(
    counts: np.ndarray, lowest: np.ndarray, sizes: np.ndarray, multiples: np.ndarray, total: int
) -> np.ndarray:
    """Returns multiples (or whole groups) that add up to at most `total`, as far as `lowest` allows it."""
    least = np.minimum(-(-np.maximum(lowest, 1) // multiples) * multiples, sizes)
    down = np.maximum(np.where(counts == sizes, sizes, counts // multiples * multiples), least)
    # What one group must keep beyond its share, others give, as long as any can.
    while down.sum() > total:
        lower = np.maximum((down - 1) // multiples * multiples, least)
        given = np.where(lower < down, counts - lower, np.iinfo(np.int64).max)
        if not (lower < down).any():
            break
        group = int(np.argmin(given))
        down[group] = lower[group]
    up = np.minimum(down + multiples, sizes)
    # Those that lose most by rounding down get the next multiple, as long as the total allows it.
    for group in np.argsort(down - counts, kind="stable"):
        if down.sum() + up[group] - down[group] <= total and down[group] < counts[group]:
            down[group] = up[group]
    return down


@dataclass
class NodeRules:
    """What the user wants of the shapes that node criteria leave.

    Args:
        ranking: "global" ranks all nodes together, "local" takes the same share of every layer (default: the
            criterion's own).
        round_to: widths become multiples of this, which suits hardware.
        min_keep: nodes that every layer keeps at least.
        target: what --pruning_limit counts: nodes, weights, flops or latency (default: the criterion's own).
    """

    ranking: Ranking | None = None
    round_to: int = 1
    min_keep: int = 1
    target: Target | None = None

    def __post_init__(self) -> None:
        for name in ("round_to", "min_keep"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1; {getattr(self, name)} was given.")
        for name, known in (("ranking", get_args(Ranking)), ("target", get_args(Target))):
            if getattr(self, name) not in (None, *known):
                raise UsageError(f"{name} must be one of {', '.join(known)}; {getattr(self, name)!r} was given.")
