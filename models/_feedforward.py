"""Fully connected networks: any picture or row of a table is flattened, then passes linear layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from models._layers import after_linear, dense_stack, init_orthogonal


class FeedForward(nn.Module):
    """Linear layers with LeakyReLU (and batch normalisation) between them; `layers` holds them in order.

    Args:
        num_classes: number of logits; for a regression, of values.
        input_shape: of one sample: (channels, height, width), (columns,) or any other.
        hidden: widths of the hidden layers, first to last; empty for a linear model.
        dropout: share of each hidden layer's outputs dropped in training. The inputs themselves are never dropped.
        norm: batch normalisation after every hidden layer.
    """

    tasks = ("classification", "regression")

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, ...],
        *,
        hidden: Sequence[int],
        dropout: float,
        norm: bool = False,
    ) -> None:
        super().__init__()
        sizes = [math.prod(input_shape), *hidden, num_classes]
        first: list[nn.Module] = [nn.Linear(sizes[0], sizes[1])]
        if hidden:
            first += [*after_linear(sizes[1], norm=norm), *dense_stack(sizes[1:], dropout=dropout, norm=norm)]
        self.layers = nn.Sequential(*first)
        init_orthogonal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, *input_shape) to logits (batch, num_classes)."""
        return self.layers(x.flatten(1))
