"""What the losses share that prepare a network for pruning: cross-entropy, and a penalty until the first event."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from losses._fit import class_loss
from pruning import PrunableNetwork, UsageError


class SparsityLoss:
    """Cross-entropy and `strength` times what `measure` says of the network, until something was pruned.

    What is left after an event is fine-tuned without the penalty.
    """

    followed_by: ClassVar[str] = "CrossEntropy"  # the loss of a run that starts from a network prepared by this one

    strength: float

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """The data term alone, which is also what criteria differentiate."""
        return class_loss(self, outputs, targets)

    def penalty(self, network: PrunableNetwork) -> Tensor | float:
        """What training adds to the data term."""
        return 0.0 if network.events or not self.strength else self.strength * self.measure(network)

    def measure(self, network: PrunableNetwork) -> Tensor:
        """What the penalty makes small; a scalar with gradients."""
        raise TypeError(f"{type(self).__name__} must define measure(network)")


def checked(name: str, value: float) -> float:
    """Returns a setting, or raises UsageError unless it is a number of at least 0."""
    if not 0 <= value < math.inf:
        raise UsageError(f"--{name} must be at least 0; {value} was given.")
    return value


def node_squares(network: PrunableNetwork) -> Tensor:
    """Returns (nodes,) the sum of squares of all that goes with each node but biases: rows, columns, norm scales."""
    parameters = network.model.named_parameters()
    squares = {n: p.square() for n, p in parameters if p.is_floating_point() and "bias" not in n.rpartition(".")[2]}
    return network.graph.reduce_to_nodes(squares, role="all")


def hoyer_square(total: Tensor, squares: Tensor) -> Tensor:
    """Returns total^2 / squares, 0 with a zero gradient where both are 0."""
    return total.square() / squares.clamp_min(torch.finfo(squares.dtype).tiny)
