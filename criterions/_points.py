"""The set S on which sensitivities are measured: how many points the theory asks for, and which they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruning import PrunableState, UsageError
from pruning.modules.calls import Batches, batch_size_of, mapped
from pruning.modules.kinds import WEIGHTED
from pruning.scores import pairs

C = 3.0  # the papers' constant of |S|: how fast S comes to know the largest shares


@dataclass
class Points:
    """Points from a loader, in one pass, for a loader that shuffles gives others the next time.

    Args:
        own: batches of S.
        fresh: batches of points that are not in S.
        number: |S|.
        fresh_number: how many are fresh.
        delta: the probability of failure that so many points allow, the asked one if there are enough.
    """

    own: list[Any]
    fresh: list[Any]
    number: int
    fresh_number: int
    delta: float


def outputs_of_layers(network: PrunableState) -> dict[str, float]:
    """Returns how many numbers each ranked layer puts out per sample, over all positions."""
    flops = network.flops_by_weight()
    outputs = {}
    for name, weight in network.weights():
        if weight.numel():
            flops_per_output = 2 * weight.numel() / rows_of(network, name)
            outputs[name] = max(1.0, flops[name] / flops_per_output)  # nothing reaches some layers
    return outputs


def rows_of(network: PrunableState, name: str) -> int:
    """Returns how many rows a weight has: of a convolution its first dimension, of experts the outputs of all."""
    weight = network.model.get_parameter(name)
    if kernel_of(network, name) is not None:
        return weight.shape[0]
    return math.prod(weight.shape[dim] for dim in network.output_dims(name))


def kernel_of(network: PrunableState, name: str) -> torch.Size | None:
    """Returns the sides of a convolution's kernel, () of what a linear layer is computed by; None of any other."""
    weight = network.model.get_parameter(name)
    module = network.model.get_submodule(network.owners()[name])
    is_layer = isinstance(module, WEIGHTED) and name in network.names_of_layers()
    return weight.shape[2:] if is_layer else None


def entries_of_channel(network: PrunableState, name: str) -> int:
    """Returns how many entries of a weight each input channel has for one output: those of the kernel."""
    kernel = kernel_of(network, name)
    return 1 if kernel is None else kernel.numel()


def points_needed(network: PrunableState, delta: float) -> int:
    """Returns |S| = C ln(8 eta_max eta_sum / delta), eta being the outputs of each layer per point, C = 3."""
    return math.ceil(C * math.log(max(_pairs(network) / delta, math.e)))


def draw_points(network: PrunableState, batches: Batches, number: int | None, delta: float) -> Points:
    """Takes S and as many fresh points from a loader; its order is the draw.

    Args:
        network: its layers' outputs say how many points the theory asks for.
        batches: the loader.
        number: points of S; None for as many as the theory asks for, or nine tenths of what there is.
        delta: the asked probability of failure.
    """
    wanted = number or points_needed(network, delta)
    found = list(_between(batches, 0, 2 * wanted))
    total = sum(batch_size_of(batch[0]) for batch in found)
    if not total:
        raise UsageError("This criterion scores on data, and it was given no batches.")
    # Where the theory would take all there are, some are left for measuring.
    most = total if number else math.ceil(0.9 * total)
    own = min(wanted, most)
    return Points(
        own=list(_between(found, 0, own)),
        fresh=list(_between(found, own, total)),
        number=own,
        fresh_number=total - own,
        delta=max(delta, _pairs(network) * math.exp(-own / C)),
    )


def _pairs(network: PrunableState) -> float:
    """Returns 8 eta_max eta_sum."""
    outputs = outputs_of_layers(network).values()
    return 8 * max(outputs) * sum(outputs)


def _between(batches: Batches, start: int, end: int) -> Iterator[tuple[Any, Any]]:
    """Yields the points from one place to another, in batches as they come."""
    if start >= end:
        return  # without a look at the loader: asking it for a batch would move its random order on
    first = 0
    for batch in pairs(batches):
        last = first + batch_size_of(batch[0])
        if last > start:
            is_whole = start <= first and last <= end
            yield batch if is_whole else mapped(batch, _cut(max(0, start - first), end - first))
        if last >= end:
            return
        first = last


def _cut(start: int, end: int) -> Callable[[Tensor], Tensor]:
    def cut(tensor: Tensor) -> Tensor:
        return tensor[start:end] if tensor.dim() else tensor  # labels may be a placeholder

    return cut
