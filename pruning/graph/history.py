"""What was cut out of a network since its graph was built, so that a fresh copy can be brought to the same point.

A graph built anew on a shrunken network would not know what could once be cut: a layer of one channel looks as if it
had never had more. Carrying the cuts over keeps nodes, groups and counts as they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruning.cut.tensors import Keep, cut
from pruning.errors import UsageError
from pruning.graph.graph import DependencyGraph

Survivors = Mapping[str, Mapping[int, Tensor]]


def kept_indices_of(graph: DependencyGraph) -> dict[str, dict[int, Tensor]]:
    """Returns parameter or buffer name -> dimension -> bool per index of the start, for dimensions that lost some."""
    found: dict[str, dict[int, Tensor]] = {}
    for dimension in graph.structure.dimensions:
        end = dimension.start + dimension.size
        alive = graph.structure.alive[dimension.start : end]
        if not alive.all():
            found.setdefault(dimension.name, {})[dimension.dim] = torch.from_numpy(alive.copy())
    return found


def cut_like(graph: DependencyGraph, kept_indices: Survivors) -> bool:
    """Tells a graph of the dense network that its tensors have been cut already; returns whether that made sense.

    Args:
        graph: built before anything was cut; its network has the smaller shapes by now.
        kept_indices: what `kept_indices_of` said of the network that was cut.
    """
    structure = graph.structure
    dead = np.zeros(structure.total, dtype=bool)
    for dimension in structure.dimensions:
        kept = kept_indices.get(dimension.name, {}).get(dimension.dim)
        if kept is None:
            continue
        if len(kept) != dimension.size:
            return False
        end = dimension.start + dimension.size
        dead[dimension.start : end] = ~kept.cpu().numpy()
    # Values in flight go with the slices that make them.
    gone = np.unique(structure.component[dead])
    removed = np.isin(structure.component, gone) & structure.alive
    # A node goes as a whole: where only a part of its slices is dead, another network was cut.
    if not structure.alive.all() or removed[: structure.slice_labels].sum() != dead.sum():
        return False
    try:
        graph.traced.commit(removed)
    except UsageError:  # of other shapes than the network has
        return False
    return True


def cut_state(state: Mapping[str, Any], kept_indices: Survivors) -> dict[str, Any]:
    """Returns a dense network's state dict with the same indices cut out."""
    # Tied tensors have several names, of which the kept indices know the first.
    keeps: dict[int, Keep] = {}
    for name, masks in kept_indices.items():
        if name in state:
            keeps[state[name].data_ptr()] = {dim: mask.nonzero().flatten() for dim, mask in masks.items()}
    found = dict(state)
    for name, value in state.items():
        if isinstance(value, Tensor):
            found[name] = cut(value, keeps.get(value.data_ptr(), {}))
    return found
