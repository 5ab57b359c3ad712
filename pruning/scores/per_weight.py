"""Values of single weights, without data."""

from __future__ import annotations

from torch import Tensor

from pruning.state import PrunableState


def magnitudes(network: PrunableState) -> dict[str, Tensor]:
    """Returns |w| per ranked weight, of its shape."""
    return {name: weight.detach().abs() for name, weight in network.weights()}
