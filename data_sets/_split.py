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
    if labels is not None:
        shuffled = shuffled[_interleaving(labels.cpu().numpy()[shuffled])]
    held, rest = np.sort(shuffled[:held_out]), np.sort(shuffled[held_out:])
    return torch.from_numpy(rest), torch.from_numpy(held)


def _interleaving(labels: np.ndarray) -> np.ndarray:
    """An order whose every beginning holds all classes in proportion: by (rank within class + 1/2) / class size."""
    by_class = np.argsort(labels, kind="stable")
    _, first, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    position = np.empty(len(labels))
    position[by_class] = (np.arange(len(labels)) - np.repeat(first, sizes) + 0.5) / np.repeat(sizes, sizes)
    return np.argsort(position, kind="stable")
