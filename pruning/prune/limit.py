"""What a limit can count (nodes, weights, FLOPs, latency): how much of it is gone, and how much a cut would take."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pruning.errors import UsageError
from pruning.measure.flops import flops_by_module
from pruning.measure.latency import latency
from pruning.modules.calls import batch_size_of
from pruning.prune.layout import NodeSelection
from pruning.state import PrunableState

Removed = np.ndarray  # (labels,) bool, which go with the nodes that go

NEAR = 0.005  # more than was asked by so little is no news: nodes have sizes

# A little less will do: a sum of floating-point numbers must not cost a node.
SLACK = 1e-9


def nodes_to_keep(total: int, sparsity: float) -> int:
    """Returns floor((1 - sparsity) * total), not misled by 1 - 0.9 being a little less than 0.1."""
    return math.floor((1 - sparsity) * total + 1e-6)


def reached(network: PrunableState, counted: str) -> float:
    """Returns the fraction that is gone of what was there at the start."""
    if counted == "nodes":
        return network.node_sparsity()
    if counted == "flops":
        return 1 - network.flops(masked=True) / network.start_flops()
    if counted == "latency":
        return 1 - latency(network.model, network.example_inputs) / network.start_latency()
    left = {name: network.weights_left([name]) for name in network.counted_names()}
    return _sparsity(network, left)


def most_to_keep(
    network: PrunableState, selection: NodeSelection, ranking: Tensor, sparsity: float, counted: str
) -> int:
    """Returns the largest number of nodes to keep with which a sparsity is reached, 0 where none will do.

    Args:
        network: what is pruned.
        selection: how nodes may be chosen.
        ranking: (nodes,) higher is kept.
        sparsity: fraction removed of what was there at the start.
        counted: "nodes", "weights", "flops" or "latency".
    """
    if counted == "nodes":
        protected = int((~network.open_nodes()).sum())
        return nodes_to_keep(network.nodes_total(), sparsity) + protected

    def reaches(measure: Callable[[PrunableState, Tensor], float]) -> Callable[[int], bool]:
        def holds(n_keep: int) -> bool:
            gone = ~selection.keep(ranking, n_keep)
            return measure(network, gone) >= sparsity - SLACK

        return holds

    if counted == "weights":
        return _largest(reaches(weights_after), len(ranking))
    if counted == "latency":
        return _largest(reaches(_latency_after), len(ranking))
    # A forecast from the sizes of weights is cheap; around it few networks have to be counted.
    guess = _largest(reaches(_flops_forecast), len(ranking))
    return _largest(reaches(_flops_after), len(ranking), guess)


def filled(network: PrunableState, selection: NodeSelection, ranking: Tensor, keep: Tensor, sparsity: float) -> Tensor:
    """Returns a choice and the best nodes that still fit under a limit of weights, each group's until one does not.

    A node of a wide residual stream may weigh a hundredth of the network, one inside a block far less.
    """
    keep = keep.clone()
    may_stay = selection.best(ranking, selection.highest)
    closed = keep | ~may_stay  # nodes that are settled
    groups = torch.from_numpy(selection.groups)
    while not bool(closed.all()):
        open_nodes = (~closed).nonzero().flatten()
        best = open_nodes[ranking[open_nodes].argmax()]
        keep[best] = closed[best] = True
        if weights_after(network, ~keep) < sparsity - SLACK:
            keep[best] = False
            closed[groups == groups[best]] = True
    return keep


def _largest(holds: Callable[[int], bool], top: int, guess: int | None = None) -> int:
    """Returns the largest number below `top` for which something holds that holds for all smaller ones (or 0)."""
    low, high, step = 0, top, 1
    # Around a good guess a few trials are enough.
    while guess is not None and low < guess < high and low < high - 1:
        if holds(guess):
            low, guess = guess, guess + step
        else:
            high, guess = guess, guess - step
        step *= 2
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def weights_after(network: PrunableState, gone: Tensor) -> float:
    """Returns the sparsity of the ranked weights once nodes are gone; masked weights count as gone."""
    removed = _removed_labels(network, gone)
    left: dict[str, int] = {}
    weights = network.prunable()
    for name in network.counted_names():
        weight = weights[name]
        mask = network.masks.keep.get(name)
        stays = _staying(network, name, removed)
        if mask is None or not network.masks.removed(name):
            # Nothing is masked, so the product of the sizes that stay is the number.
            sizes = list(weight.shape)
            for dim, part in stays.items():
                sizes[dim] = int(part.sum())
            left[name] = math.prod(sizes)
            continue
        for dim, part in stays.items():
            indices = torch.from_numpy(np.flatnonzero(part)).to(mask.device)
            mask = mask.index_select(dim, indices)
        left[name] = int(mask.sum())
    return _sparsity(network, left)


def sparsity_after(network: PrunableState, gone: Tensor, counted: str) -> float:
    """Returns the sparsity in weights, FLOPs or latency once nodes are gone, (nodes,) bool."""
    measures = {"weights": weights_after, "flops": _flops_after, "latency": _latency_after}
    return measures[counted](network, gone)


def _sparsity(network: PrunableState, left: dict[str, int]) -> float:
    total = sum(network.start_sizes[name] for name in left)
    return 1 - sum(left.values()) / total if total else 0.0


def _flops_forecast(network: PrunableState, gone: Tensor) -> float:
    """As `_flops_after`, from the sizes of weights alone: every product by a weight costs as much as it has entries."""
    removed = _removed_labels(network, gone)
    left = network.flops(masked=True)
    for name, flops in network.flops_by_weight().items():
        share = 1.0
        for part in _staying(network, name, removed).values():
            share *= float(part.mean())
        left -= flops * (1 - share)
    return 1 - left / network.start_flops()


def _flops_after(network: PrunableState, gone: Tensor) -> float:
    if not bool(gone.any()):
        return reached(network, "flops")
    of_example = flops_by_module(_preview(network, gone), network.example_inputs)[""]
    flops = of_example / batch_size_of(network.example_inputs)
    return 1 - flops / network.start_flops()


def _latency_after(network: PrunableState, gone: Tensor) -> float:
    model = _preview(network, gone) if bool(gone.any()) else network.model
    return 1 - latency(model, network.example_inputs) / network.start_latency()


def _preview(network: PrunableState, gone: Tensor) -> torch.nn.Module:
    """Returns a copy of the network without some nodes."""
    try:
        return network.graph.plan(np.flatnonzero(gone.numpy())).preview()
    except UsageError:
        # Its code lets none of them go; the event itself will find out and say so.
        return network.model


def _removed_labels(network: PrunableState, gone: Tensor) -> Removed:
    return network.graph.structure.removed_labels(np.flatnonzero(gone.numpy()))


def _staying(network: PrunableState, name: str, removed: Removed) -> dict[int, np.ndarray]:
    """Returns dimension -> bool per index of a weight, for those dimensions that could shrink."""
    weight = network.model.get_parameter(name)
    graph = network.graph
    first_name = graph.name_of(weight) or name  # tied tensors have several
    staying = {}
    for dim in range(weight.dim()):
        labels = graph.traced.labels(first_name, dim)
        if len(labels):
            staying[dim] = ~removed[labels]
    return staying
