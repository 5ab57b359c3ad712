"""From scores per node to the nodes that stay, by the user's rules for shapes."""

from __future__ import annotations

from dataclasses import dataclass

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
