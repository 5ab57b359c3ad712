"""nn.MultiheadAttention that can lose whole heads.

torch's own computes the width of a head from the embedding, so with a head gone the others would get wider. `ByHeads`
computes the same from what it keeps: a number of heads and the width of one. A cut puts it in the place of the layer's
class; parameters and their names stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ByHeads(nn.MultiheadAttention):
    """Attention in which all heads together need not be as wide as the embedding.

    It is made by cutting an nn.MultiheadAttention, and takes and returns what that does; masks by head are of the heads
    that are left.
    """

    @property
    def _qkv_same_embed_dim(self) -> bool:  # type: ignore[override]
        return False  # so torch's encoders leave out their fused path, which has torch's own layers in mind

    @_qkv_same_embed_dim.setter
    def _qkv_same_embed_dim(self, value: bool) -> None:
        pass  # said by the constructor of torch's own

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns outputs and weights, as `nn.MultiheadAttention.forward` does."""
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        is_batched = query.dim() == 3
        if not is_batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)

        queries, keys, values = self._projected(query, key, value)  # (batch, tokens, heads * head width) each
        mask = self._mask(query, key_padding_mask, attn_mask)
        keys, values, mask = self._extended(keys, values, mask)
        queries, keys, values = self._by_head(queries), self._by_head(keys), self._by_head(values)
        outputs, weights = self._attended(queries, keys, values, mask, need_weights)
        outputs = self.out_proj(outputs.transpose(1, 2).flatten(2))

        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not is_batched:
            return outputs.squeeze(0), None if weights is None else weights.squeeze(0)
        return outputs if self.batch_first else outputs.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Projects each with its own rows; those of the joint weight stand one after the other."""
        if self.in_proj_weight is None:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        else:
            weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        parts = zip((query, key, value), weights, biases, strict=True)
        return tuple(F.linear(tokens, weight, bias) for tokens, weight, bias in parts)

    def _mask(self, query: Tensor, of_keys: Tensor | None, of_pairs: Tensor | None) -> Tensor | None:
        """Returns what is added to scores, (batch or 1, heads or 1, queries or 1, keys)."""
        mask = None
        if of_pairs is not None:  # (queries, keys) or (batch * heads, queries, keys)
            mask = _added(of_pairs, query)
            mask = mask[None, None] if mask.dim() == 2 else mask.unflatten(0, (-1, self.num_heads))
        if of_keys is not None:  # (batch, keys)
            added = _added(of_keys, query)[:, None, None]
            mask = added if mask is None else mask + added
        return mask

    def _extended(self, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Adds tokens of its own, which all queries see."""
        added = 0
        if self.bias_k is not None and self.bias_v is not None:
            keys = torch.cat([keys, self.bias_k.expand(len(keys), -1, -1)], dim=1)
            values = torch.cat([values, self.bias_v.expand(len(values), -1, -1)], dim=1)
            added += 1
        if self.add_zero_attn:
            keys = torch.cat([keys, torch.zeros_like(keys[:, :1])], dim=1)
            values = torch.cat([values, torch.zeros_like(values[:, :1])], dim=1)
            added += 1
        return keys, values, mask if mask is None else F.pad(mask, (0, added))

    def _by_head(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, heads * head width) -> (batch, heads, tokens, head width)"""
        return tokens.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _attended(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            return F.scaled_dot_product_attention(queries, keys, values, mask, dropout), None
        scores = queries * self.head_dim**-0.5 @ keys.transpose(-1, -2)
        if mask is not None:
            scores = scores + mask
        weights = F.dropout(scores.softmax(-1), dropout)
        return weights @ values, weights


def _added(mask: Tensor, query: Tensor) -> Tensor:
    """Returns a mask as numbers to add; True of a boolean one hides."""
    if mask.dtype != torch.bool:
        return mask.to(query.dtype)
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, float("-inf"))


@contextmanager
def by_heads(model: nn.Module) -> Iterator[None]:
    """Every nn.MultiheadAttention of a network can lose heads meanwhile."""
    layers = [module for module in model.modules() if type(module) is nn.MultiheadAttention]
    for layer in layers:
        object.__setattr__(layer, "__class__", ByHeads)
    try:
        yield
    finally:
        for layer in layers:
            object.__setattr__(layer, "__class__", nn.MultiheadAttention)
