from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models._layers import check_settings


class GPT(nn.Module):
    """A decoder in the manner of GPT-2: norms first, learned positions, one matrix for tokens in and out.

    858,880 parameters as it is here for 256 tokens and windows of 256 (Radford et al. 2019, "Language Models are
    Unsupervised Multitask Learners"). Differs from the paper: queries, keys and values are three layers instead of
    one, so that heads can go one by one; weights are drawn for the width; no dropout by default.

    Args:
        layers: blocks of attention and MLP.
        heads: attention heads of each block; `width` is a multiple of them.
        width: channels of the residual stream; the MLP is four times as wide.
        dropout: share dropped in training of the embeddings and of what each block adds, in [0, 1).
    """

    tasks = ("language",)

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, ...],
        *,
        layers: int = 4,
        heads: int = 4,
        width: int = 128,
        dropout: float = 0.0,
    ) -> None:
        sizes = {"layers": layers, "heads": heads, "width": width}
        check_settings(num_classes, input_shape, axes=("tokens of a window",), dropout=dropout, **sizes)
        if width % heads:
            raise ValueError(f"width {width} is no multiple of heads {heads}")
        super().__init__()
        (context,) = input_shape
        self.tokens = nn.Embedding(num_classes, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList([Block(width, heads, dropout=dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, num_classes, bias=False)
        self.output.weight = self.tokens.weight
        self._draw_weights(layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens, int64 (batch, time), to scores of each next one, (batch, time, vocabulary).

        A sequence may be shorter than the windows that the network was made for, not longer.
        """
        time = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.tokens(tokens) + self.positions(time))
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(x))

    def _draw_weights(self, layers: int) -> None:
        """GPT-2's start, but for the deviation: its 0.02 is for widths near 1000, and would be slow to leave here.

        What is added to the residual stream is drawn smaller the more layers add to it.
        """
        deviation = self.tokens.embedding_dim**-0.5
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                is_last_of_block = name.endswith(("attention.output.weight", "mlp.output.weight"))
                scale = 1 / math.sqrt(2 * layers) if is_last_of_block else 1.0
                nn.init.normal_(parameter, std=deviation * scale)


class Block(nn.Module):
    """Attention and an MLP, each after a norm of its own and added to what came in."""

    def __init__(self, width: int, heads: int, *, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, time, width) to the same shape."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Attention(nn.Module):
    """Every token looks at itself and at those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_size = width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, time, width) to the same shape."""
        query, key, value = (self._by_head(layer(x)) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # (batch, heads, time, head size)
        # Contiguous always: otherwise torch takes another way where one head is left, and the last two would be kept.
        return self.output(mixed.transpose(1, 2).contiguous().flatten(2))

    def _by_head(self, x: Tensor) -> Tensor:
        """(batch, time, heads * head size) -> (batch, heads, time, head size), however many heads there still are."""
        return x.unflatten(2, (-1, self.head_size)).transpose(1, 2)


class MLP(nn.Module):
    """Two linear layers, the hidden one four times as wide, with GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 4 * width)
        self.output = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, time, width) to the same shape."""
        return self.output(F.gelu(self.hidden(x), approximate="tanh"))
