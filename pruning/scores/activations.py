"""How much of an output a weight, or a channel, can be: relative contributions, largest over the points of a set S.

For one output value z = sum_j w_j a_j, split by the sign of the products, entry j's share of its own part is
g_j = w_j a_j / sum over the entries of that sign, between 0 and 1. The sensitivity s_j is the largest share met over
the positions of an image and the images of S (SiPP, arXiv:1910.05422; for channels PFP, arXiv:1911.07412). A point
with activations of both signs counts as two, max(a, 0) and max(-a, 0). Biases take no part.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pruning.modules.calls import Batches
from pruning.scores.layer import TINY, Layer
from pruning.scores.visits import visit_layers
from pruning.state import PrunableState

__all__ = ["TINY", "Layer", "channel_sensitivities", "visit_layers", "weight_sensitivities"]


def weight_sensitivities(
    network: PrunableState, batches: Batches, over_positions: Literal["mean", "max"] = "max"
) -> dict[str, Tensor]:
    """Returns the sensitivity of every ranked weight, shaped like it; zero in layers that S does not reach.

    Weights whose products cannot be followed are entered in `network.unscored`.

    Args:
        network: eval mode, no gradients; nothing in it changes.
        batches: S, pairs (inputs, targets); the targets are not looked at.
        over_positions: what becomes of a convolution's positions; a linear layer's tokens are points of their own.

    Raises:
        UsageError: for activations that are not finite; the layer is named.
    """
    found = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in network.weights()}

    def take(name: str, layer: Layer) -> None:
        layer.raise_to(found[name], layer.weight_shares(over_positions))

    network.unscored |= visit_layers(network, batches, take)
    return found


def channel_sensitivities(
    network: PrunableState, batches: Batches, channel_reduce: Literal["max", "sum"] = "max"
) -> dict[str, Tensor]:
    """Returns the sensitivity of every input channel, (rows, channels / groups) per weight, see `Layer.channels`.

    Args:
        network: as for `weight_sensitivities`.
        batches: S, pairs (inputs, targets).
        channel_reduce: "max" takes the largest share of any one kernel entry, "sum" that of all entries together,
            which is the channel's share of the output.

    What reads its channels otherwise than along its weight's input dimension is not there.
    """
    found: dict[str, Tensor] = {}

    def take(name: str, layer: Layer) -> None:
        dim = network.input_dim(name)
        if dim is None or not layer.reads(dim):
            return
        shares = layer.channel_shares(channel_reduce)
        # A layer may be used more than once in a pass.
        if name in found:
            shares = torch.maximum(found[name], shares)
        found[name] = shares

    visit_layers(network, batches, take)
    return found
