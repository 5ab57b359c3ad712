"""The set S on which sensitivities are measured: how many points the theory asks for, and the first so many."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from pruning import PrunableNetwork
from pruning.count import batch_size_of, mapped
from pruning.criterion import Batches


def outputs_of_layers(network: PrunableNetwork) -> dict[str, float]:
    """Returns how many numbers each ranked layer puts out per sample, over all positions."""
    flops = network.flops_by_weight()
    return {n: flops[n] / (2 * weight.numel() / weight.shape[0]) for n, weight in network.weights() if weight.numel()}


def points_needed(network: PrunableNetwork, delta: float) -> int:
    """Returns |S| = K ln(8 eta_max eta_sum / delta), eta being the outputs of each layer per point, K = 3."""
    outputs = outputs_of_layers(network).values()
    return math.ceil(3 * math.log(max(8 * max(outputs) * sum(outputs) / delta, math.e)))


def first_points(batches: Batches, number: int) -> Iterator[tuple[Any, Any]]:
    """Yields batches until so many points have come, the last one cut; their order is the draw of the loader."""
    left = number
    for batch in batches:
        size = batch_size_of(batch[0])
        yield batch if size <= left else mapped(batch, _first(left))
        left -= size
        if left <= 0:
            return


def _first(number: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor[:number]
