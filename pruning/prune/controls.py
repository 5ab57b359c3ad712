"""Control experiments on a finished mask (Frankle et al., arXiv:2009.08576).

A method whose accuracy survives a shuffled mask or new initial values has found how much to remove per layer, not
which weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruning.cut.factorize import LowRank
from pruning.errors import UsageError
from pruning.graph.history import cut_state
from pruning.state import PrunableState


@torch.no_grad()
def shuffle(network: PrunableState, generator: torch.Generator, initial: dict[str, Tensor]) -> None:
    """Permutes the mask within each layer; its sparsity stays. Weights that come back take their initial value.

    Under weight_norm the permutation stays within each normalised slice, since none may lose all its weights.
    """
    for name, mask in dict(network.masks.keep).items():
        shuffled = _permuted(mask, network.slices.get(name), generator)
        weight = network.model.get_parameter(name)
        back = shuffled & ~mask
        weight[back] = initial[name].to(weight.device)[back]
        network.masks.set({name: shuffled})
    network.enforce()


@torch.no_grad()
def reinitialise(network: PrunableState, fresh: nn.Module) -> None:
    """Takes all values from a freshly drawn dense network; the mask stays, and what was cut out stays out."""
    if any(isinstance(module, LowRank) for module in network.model.modules()):
        raise UsageError("A decomposed layer has no initial values to take anew.")
    network.model.load_state_dict(cut_state(fresh.state_dict(), network.kept_indices()))
    network.enforce()


def _permuted(mask: Tensor, dimension: int | None, generator: torch.Generator) -> Tensor:
    rows = mask.reshape(1, -1) if dimension is None else mask.movedim(dimension, 0).flatten(1)
    orders = [torch.randperm(rows.shape[1], generator=generator).to(mask.device) for _ in range(rows.shape[0])]
    shuffled = torch.stack([row[order] for row, order in zip(rows, orders, strict=True)])
    if dimension is None:
        return shuffled.view(mask.shape)
    return shuffled.view(mask.movedim(dimension, 0).shape).movedim(0, dimension)
