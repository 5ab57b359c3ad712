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
        known = ", ".join(ROLES)
        raise UsageError(f"reduce_to_nodes knows the roles {known} and sum, mean, max; not {role}, {reduce}.")
    graph.follow()
    named = graph.named()
    for name, value in values.items():
        if name not in named or named[name].shape != value.shape:
            raise UsageError(f"{name} {tuple(value.shape)} is no parameter of this network as it is.")
    like = next(iter(values.values()), torch.empty(0))
    # Sums of an int8 weight would overflow in its own type.
    is_short = like.dtype in (torch.int8, torch.uint8, torch.int16)
    dtype = torch.float32 if is_short else like.dtype
    result = torch.zeros(graph.structure.count, dtype=dtype, device=like.device)
    if reduce == "max":
        result = result - torch.inf
    counts = torch.zeros_like(result)
    for name, value in values.items():
        first_name = graph.traced.names[id(named[name])]  # tied tensors have several
        for dim in range(value.dim()):
            found = _positions(graph, first_name, dim, role)
            if found is None:
                continue
            where, nodes = (part.to(like.device) for part in found)
            rows = value.unsqueeze(1) if value.dim() == 1 else value.movedim(dim, 0).flatten(1)
            # Joined before it is picked: a copy of every weight would cost more than the sum.
            joined = rows.amax(1) if reduce == "max" else rows.sum(1)
            joined = joined.to(like.device, dtype)[where]
            if reduce == "max":
                result = result.scatter_reduce(0, nodes, joined, "amax")
            else:
                result = result.index_add(0, nodes, joined)
                counts.index_add_(0, nodes, torch.full_like(joined, rows.shape[1]))
    if reduce == "mean":
        return result / counts.clamp(min=1)
    return result.masked_fill(result == -torch.inf, 0)  # nodes without a value


def _positions(graph: NodeLookup, name: str, dim: int, role: str) -> tuple[Tensor, Tensor] | None:
    """Returns (positions along a dimension that count, their nodes); None where nothing counts."""
    key = (name, dim, role)
    if key not in graph.positions:
        labels = graph.traced.labels(name, dim)
        nodes = graph.structure.node_of_label[labels]
        counts = nodes >= 0
        if ROLES[role]:  # "all" is no role of its own
            counts &= graph.structure.roles[labels] & ROLES[role] > 0
        where = torch.from_numpy(np.flatnonzero(counts))
        graph.positions[key] = (where, torch.from_numpy(nodes[counts])) if counts.any() else None
    return graph.positions[key]
