"""Boolean keep-masks for weights, enforced with one fused multiply per training step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

Pairs = list[tuple[Tensor, Tensor]]  # what is multiplied, and by what


class WeightMasks:
    """Which weights stay. A weight without an entry is dense.

    `keep` maps a parameter's name to a boolean tensor of its shape, True where the weight stays. The multipliers that
    enforce it are cached in the weight's own dtype: multiplying by a boolean tensor is about three times slower.
    """

    def __init__(self) -> None:
        self.keep: dict[str, Tensor] = {}
        self._multipliers: dict[str, Tensor] = {}
        self._removed: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.keep)

    def set(self, keep: Mapping[str, Tensor]) -> None:
        """Takes over keep-masks (name -> bool tensor); those not named stay as they were."""
        for name, mask in keep.items():
            self.keep[name] = mask.bool()
        self.refresh()

    def refresh(self) -> None:
        """Forgets what was worked out from the masks, after they were cut or changed from outside."""
        self._multipliers.clear()
        self._removed.clear()

    def removed(self, name: str) -> int:
        """Returns how many weights of this parameter are masked out."""
        if name not in self._removed:
            mask = self.keep.get(name)
            self._removed[name] = 0 if mask is None else mask.numel() - int(mask.count_nonzero())
        return self._removed[name]

    def of(self, name: str, weight: Tensor) -> Tensor:
        """Returns the keep-mask of a weight, all True where nothing was removed."""
        mask = self.keep.get(name)
        return torch.ones_like(weight, dtype=torch.bool) if mask is None else mask

    def apply_to_weights(self, weights: Mapping[str, Parameter]) -> None:
        """Sets every removed weight to zero, in place."""
        pairs: Pairs = []
        for name in self.keep:
            weight = weights.get(name)
            if weight is not None:
                pairs.append((weight, self._multiplier(name, weight)))
        _multiply_in_place(pairs)

    def apply_to_gradients(self, weights: Mapping[str, Parameter]) -> None:
        """Zeroes the gradients of removed weights, so that they feed neither clipping nor the optimizer's state."""
        pairs: Pairs = []
        for name in self.keep:
            weight = weights.get(name)
            if weight is not None and weight.grad is not None:
                pairs.append((weight.grad, self._multiplier(name, weight)))
        _multiply_in_place(pairs)

    def apply_to_optimizer(self, optimizer: torch.optim.Optimizer, weights: Mapping[str, Parameter]) -> None:
        """Clears the optimizer's memory (moments) of removed weights, once per pruning event."""
        pairs: Pairs = []
        for name in self.keep:
            weight = weights.get(name)
            if weight is None:
                continue
            multiplier = self._multiplier(name, weight)
            for value in optimizer.state.get(weight, {}).values():
                # Beside moments an optimizer keeps numbers, such as its step.
                if torch.is_tensor(value) and value.shape == weight.shape:
                    pairs.append((value, multiplier))
        _multiply_in_place(pairs)

    def _multiplier(self, name: str, weight: Tensor) -> Tensor:
        cached = self._multipliers.get(name)
        is_stale = cached is not None and (cached.device != weight.device or cached.dtype != weight.dtype)
        if cached is None or is_stale:
            # In the weight's own memory layout: the fused multiply falls back to a loop for any other.
            cached = torch.empty_like(weight, requires_grad=False).copy_(self.keep[name])
            self._multipliers[name] = cached
        return cached


@torch.no_grad()
def _multiply_in_place(pairs: Pairs) -> None:
    if pairs:
        tensors, multipliers = zip(*pairs, strict=True)
        torch._foreach_mul_(list(tensors), list(multipliers))
