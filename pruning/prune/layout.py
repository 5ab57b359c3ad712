"""From scores per node to the nodes that stay, by the user's rules for shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass
class NodeSelection:
    """How nodes may be chosen.

    Args:
        groups: (nodes,) the group of each node, 0, 1, ...; a group is a layer with what is coupled to it.
        min_keep: nodes that every group keeps at least, where it has as many; one number or one per group.
        multiples: (groups,) the number kept of each group is a multiple of this, or all of it.
        local: the same share of every group, instead of one ranking over all.
        max_keep: (groups,) nodes that each group keeps at most, at least `min_keep`; None where nothing is said.
        guard: what is said of `min_keep` where it keeps more than was asked for.
        kinds: (groups,) the kind of each group, 0, 1, ...; equally large groups of a kind keep as many. None where each
            group keeps what the ranking leaves it.
    """

    groups: np.ndarray
    min_keep: int | np.ndarray = 1
    multiples: np.ndarray | None = None
    local: bool = False
    max_keep: np.ndarray | None = None
    guard: str = ""
    kinds: np.ndarray | None = None

    def keep(self, scores: Tensor, n_keep: int) -> Tensor:
        """Returns a bool tensor over nodes that keeps the best `n_keep`, or as near as the guards allow."""
        sizes, lowest, highest = self.sizes, self.lowest, self.highest
        if self.local:
            counts = shared_out(sizes, lowest, highest, n_keep)
        else:
            n_keep_all = min(max(n_keep, int(lowest.sum())), int(highest.sum()))
            counts = self._counts_of_one_ranking(scores, n_keep_all)
        if self.kinds is not None:
            counts = self._alike(counts, n_keep)
        elif self.multiples is not None:
            counts = _in_multiples(counts, lowest, sizes, self.multiples, n_keep)
        return self.best(scores, counts)

    def _alike(self, counts: np.ndarray, n_keep: int) -> np.ndarray:
        """Returns the same count for all groups of a kind, which are equally large: their mean, as `n_keep` allows."""
        assert self.kinds is not None
        members = np.bincount(self.kinds)
        multiples = np.ones_like(self.sizes) if self.multiples is None else self.multiples
        lowest, largest = np.zeros_like(members), np.zeros_like(members)
        steps, highest = np.ones_like(members), np.full_like(members, len(self.groups))
        np.maximum.at(lowest, self.kinds, self.lowest)
        np.maximum.at(largest, self.kinds, self.sizes)
        np.lcm.at(steps, self.kinds, multiples)
        np.minimum.at(highest, self.kinds, self.highest)
        # A kind is like one group whose width grows by one node of each member at a time.
        of_kind = np.bincount(self.kinds, weights=counts).astype(np.int64)
        together = _in_multiples(of_kind, members * lowest, members * largest, members * steps, n_keep)
        each = np.minimum(together // members, np.maximum(highest, lowest))
        return each[self.kinds]

    def _counts_of_one_ranking(self, scores: Tensor, n_keep: int) -> np.ndarray:
        """Returns how many nodes of each group are among the best `n_keep` of all."""
        protected = self.effective(scores).numpy()
        # Equal scores of different groups take turns, by the share of the group that is better.
        shares = self._places(scores) / self.sizes[self.groups]
        order = np.lexsort((shares, -protected))
        best = order[:n_keep]
        return np.bincount(self.groups[best], minlength=len(self.sizes))

    def keep_above(self, scores: Tensor, threshold: float) -> Tensor:
        """Returns a bool tensor over nodes that keeps those at or above a threshold, and what must stay."""
        keep = self.effective(scores) >= threshold
        if self.multiples is None:
            return keep
        rounded_up = _up_to_multiple(self.counts(keep), self.multiples)
        return self.best(scores, np.minimum(rounded_up, self.sizes))

    def with_two_each(self) -> NodeSelection:
        """Returns the same rules, but that every group keeps two nodes at least, where it has as many."""
        max_keep = None if self.max_keep is None else np.maximum(self.max_keep, 2)
        if isinstance(self.min_keep, np.ndarray):
            return replace(self, min_keep=np.maximum(self.min_keep, 2), max_keep=max_keep)
        return replace(self, min_keep=max(self.min_keep, 2), max_keep=max_keep)

    def effective(self, scores: Tensor) -> Tensor:
        """Returns the threshold above which each node is gone: its score, infinity for its group's best.

        Of a group that keeps no more than a number, the others are gone above minus infinity.
        """
        must_stay = self.best(scores, self.min_keep)
        scores = scores.masked_fill(must_stay, torch.inf)
        if self.max_keep is None:
            return scores
        may_stay = self.best(scores, self.max_keep)
        return scores.masked_fill(~may_stay, -torch.inf)

    def counts(self, kept: Tensor) -> np.ndarray:
        """Returns how many nodes a choice keeps of each group."""
        return np.bincount(self.groups[kept.numpy()], minlength=len(self.sizes))

    def best(self, scores: Tensor, counts: np.ndarray | int) -> Tensor:
        """Marks the best nodes of each group; ties stay in order of position.

        Args:
            scores: (nodes,) on the CPU.
            counts: how many of each group, one number or one per group.
        """
        places = self._places(scores)
        if isinstance(counts, np.ndarray):
            return torch.from_numpy(places < counts[self.groups])
        return torch.from_numpy(places < counts)

    @property
    def sizes(self) -> np.ndarray:
        """How many nodes each group has."""
        return np.bincount(self.groups)

    @property
    def lowest(self) -> np.ndarray:
        """How many nodes each group keeps at least."""
        return np.minimum(self.sizes, self.min_keep)

    @property
    def highest(self) -> np.ndarray:
        """How many nodes each group keeps at most."""
        return self.sizes if self.max_keep is None else np.minimum(self.sizes, self.max_keep)

    def describe(self) -> str:
        """Says which guard keeps a number of nodes from being reached."""
        largest = 1 if self.multiples is None else int(self.multiples.max(initial=1))
        if largest > 1:
            return f"widths are multiples of {largest}"
        if self.kinds is not None:
            return "layers of a kind keep as many"
        if self.guard:
            return self.guard
        if isinstance(self.min_keep, np.ndarray):
            return "every layer keeps a share of its nodes"
        if self.min_keep > 1:
            return f"every layer keeps {self.min_keep}"
        return "no layer is emptied"

    def _places(self, scores: Tensor) -> np.ndarray:
        """Returns (nodes,) the place of each node in its group, from 0, the best first."""
        order = torch.sort(-scores, stable=True).indices.numpy()
        # A second stable sort lines the groups up one after the other and leaves the best of each in front.
        by_group = order[np.argsort(self.groups[order], kind="stable")]
        starts = self.sizes.cumsum() - self.sizes
        places = np.empty(len(order), dtype=np.int64)
        places[by_group] = np.arange(len(order)) - starts[self.groups[by_group]]
        return places


def shared_out(sizes: np.ndarray, lowest: np.ndarray, highest: np.ndarray, total: int) -> np.ndarray:
    """Returns whole numbers per group that add up to `total`, in proportion to the sizes where the bounds allow it.

    Largest remainders are rounded up first, of equal ones the earlier group.
    """
    if total <= lowest.sum():
        return lowest
    low, high = 0.0, 1.0
    # The sum rises with the share; sixty halvings leave nothing of a double.
    for _ in range(60):
        share = (low + high) / 2
        wanted = np.clip(share * sizes, lowest, highest)
        if wanted.sum() < total:
            low = share
        else:
            high = share
    wanted = np.clip(high * sizes, lowest, highest)
    counts = np.floor(wanted + 1e-9).astype(np.int64)
    missing = min(total, int(highest.sum())) - int(counts.sum())
    by_remainder = np.argsort(counts - wanted, kind="stable")
    counts[by_remainder[:missing]] += 1
    return counts


def _up_to_multiple(counts: np.ndarray, multiples: np.ndarray) -> np.ndarray:
    return -(-counts // multiples) * multiples


def _down_to_multiple(counts: np.ndarray, multiples: np.ndarray) -> np.ndarray:
    return counts // multiples * multiples


def _in_multiples(
    counts: np.ndarray, lowest: np.ndarray, sizes: np.ndarray, multiples: np.ndarray, total: int
) -> np.ndarray:
    """Returns multiples (or whole groups) that add up to at most `total`, as far as `lowest` allows it."""
    least = _up_to_multiple(np.maximum(lowest, 1), multiples)
    least = np.minimum(least, sizes)
    down = np.where(counts == sizes, sizes, _down_to_multiple(counts, multiples))
    down = np.maximum(down, least)
    # What one group must keep beyond its share, others give, as long as any can.
    while down.sum() > total:
        lower = np.maximum(_down_to_multiple(down - 1, multiples), least)
        can_give = lower < down
        if not can_give.any():
            break
        lost = np.where(can_give, counts - lower, np.iinfo(np.int64).max)
        group = int(np.argmin(lost))
        down[group] = lower[group]
    up = np.minimum(down + multiples, sizes)
    # Those that lose most by rounding down get the next multiple, as long as the total allows it.
    for group in np.argsort(down - counts, kind="stable"):
        fits = down.sum() + up[group] - down[group] <= total
        if fits and down[group] < counts[group]:
            down[group] = up[group]
    return down
