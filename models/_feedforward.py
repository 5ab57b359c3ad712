"""Fully connected networks: any picture is flattened, then passes linear layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from models._layers import after_linear, dense_stack, init_orthogonal


class FeedForward(nn.Module):
    """Linear layers with LeakyReLU (and batch normalisation) between them; `layers` holds them in order.

    Args:
        num_classes: number of logits.
        input_shape: (channels, height, width) of one sample.
        hidden: widths of the hidden layers, first to last; empty for a linear model.
        dropout: share of each hidden layer's outputs dropped in training. The picture itself is never dropped.
        norm: batch normalisation after every hidden layer.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, int, int],
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
        """Maps (batch, channels, height, width) to logits (batch, num_classes)."""
        return self.layers(x.flatten(1))
