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
        # Masked weights are zero by now, which is no value to go on from.
        back = shuffled & ~mask
        weight[back] = initial[name].to(weight.device)[back]
        network.masks.set({name: shuffled})
    network.enforce()


@torch.no_grad()
def reinitialise(network: PrunableState, fresh: nn.Module) -> None:
    """Takes all values from a freshly drawn dense network; the mask stays, and what was cut out stays out."""
    if any(isinstance(module, LowRank) for module in network.model.modules()):
        raise UsageError("A decomposed layer has no initial values to take anew.")
    # The fresh network is dense: of its values those are taken that stand where something was left.
    values = cut_state(fresh.state_dict(), network.kept_indices())
    network.model.load_state_dict(values)
    network.enforce()


def _permuted(mask: Tensor, dimension: int | None, generator: torch.Generator) -> Tensor:
    """Returns a mask whose entries are permuted, within each slice along a dimension if one is given."""
    if dimension is None:
        order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
        return mask.flatten()[order].view(mask.shape)
    slices_first = mask.movedim(dimension, 0)
    rows = []
    for row in slices_first.flatten(1):
        order = torch.randperm(len(row), generator=generator).to(mask.device)
        rows.append(row[order])
    shuffled = torch.stack(rows).view(slices_first.shape)
    return shuffled.movedim(0, dimension)
