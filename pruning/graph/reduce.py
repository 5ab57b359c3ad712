"""Values per weight joined into one per node, by arrays that are looked up once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pruning.errors import UsageError
from pruning.graph.lookup import NodeLookup
from pruning.trace.labels import ROLES


def reduce_to_nodes(graph: NodeLookup, values: Mapping[str, Tensor], role: str, reduce: str) -> Tensor:
    """Does what `DependencyGraph.reduce_to_nodes` says."""
    if role not in ROLES or reduce not in ("sum", "mean", "max"):
        raise UsageError(
            f"reduce_to_nodes knows the roles {', '.join(ROLES)} and sum, mean, max; not {role}, {reduce}."
        )
    named, parts = graph.named(), []
    for name, value in values.items():
        if name not in named or named[name].shape != value.shape:
            raise UsageError(f"{name} {tuple(value.shape)} is no parameter of this network as it is.")
        parts += [(value, _index(graph, graph.traced.names[id(named[name])], dim, role)) for dim in range(value.dim())]
    device = parts[0][0].device if parts else torch.device("cpu")
    dtype = parts[0][0].dtype if parts else torch.get_default_dtype()
    result = torch.zeros(graph.structure.count, dtype=dtype, device=device)
    counts = torch.zeros_like(result)
    if reduce == "max":
        result = result - torch.inf
    for value, index in parts:
        if index is None:
            continue
        axis, where, nodes = index
        flat = value.movedim(axis, 0).flatten(1) if value.dim() > 1 else value.unsqueeze(1)
        nodes = nodes.to(device)
        # Joined before it is picked: a copy of every weight would cost more than the sum.
        slices = (flat.amax(1) if reduce == "max" else flat.sum(1)).to(device, dtype)[where.to(device)]
        if reduce == "max":
            result = result.scatter_reduce(0, nodes, slices, "amax")
        else:
            result = result.index_add(0, nodes, slices)
            counts.index_add_(0, nodes, torch.full_like(slices, flat.shape[1]))
    return result / counts.clamp(min=1) if reduce == "mean" else result.masked_fill(result == -torch.inf, 0)


def _index(graph: NodeLookup, name: str, dim: int, role: str) -> tuple[int, Tensor, Tensor] | None:
    """Returns (dimension, positions along it that count, their nodes); None where nothing counts."""
    if (name, dim, role) not in graph.indices:
        labels = graph.traced.labels(name, dim)
        nodes = graph.structure.node_of_label[labels]
        counts = (nodes >= 0) & ((ROLES[role] == 0) | (graph.structure.roles[labels] & ROLES[role] > 0))
        made = (dim, torch.from_numpy(np.flatnonzero(counts)), torch.from_numpy(nodes[counts]))
        graph.indices[name, dim, role] = made if counts.any() else None
    return graph.indices[name, dim, role]
