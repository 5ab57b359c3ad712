"""Fixed, stratified cuts of a data set; they never touch the global random number generators."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def stratified_split(labels: Tensor | None, count: int, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Cuts `count` samples into two parts that hold every class in the same proportion, within one sample.

    Args:
        labels: (count,) class numbers, or None where the classes are unknown; then the cut is simply random.
        count: samples in all.
        held_out: size of the second part; the sizes are exact.
        seed: of the choice; equal seeds give equal cuts on every machine.

    Returns:
        The sorted indices of both parts, the rest first.
    """
    # RandomState, not default_rng: NumPy promises that its stream never changes, and published splits must not move.
    shuffled = np.random.RandomState(seed).permutation(count)
    groups = [shuffled] if labels is None else _by_class(shuffled, labels.cpu().numpy())
    shares = _shares(groups, held_out)
    held = np.concatenate([group[:share] for group, share in zip(groups, shares, strict=True)])
    rest = np.setdiff1d(shuffled, held)
    return torch.from_numpy(rest), torch.from_numpy(np.sort(held))


def _by_class(shuffled: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """The samples of each class, in shuffled order."""
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    changes = np.diff(labels[ordered])
    starts = np.flatnonzero(changes) + 1  # of every class but the first
    return np.split(ordered, starts)


def _shares(groups: list[np.ndarray], held_out: int) -> np.ndarray:
    """How many of each group go; rounded down, then the groups that lost most by rounding give one more."""
    sizes = np.array([len(group) for group in groups])
    wanted = sizes * held_out
    total = int(sizes.sum())
    shares = wanted // total  # in integers: floats would round differently somewhere
    order = np.argsort(-(wanted % total), kind="stable")
    shares[order[: held_out - shares.sum()]] += 1
    return shares
