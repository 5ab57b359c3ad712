"""A running average of everything that a network learns, to be evaluated in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """Exponential moving average that starts at zero and is corrected for that start, as Adam's moments are.

    Args:
        tensors: returns what is averaged, by name.
        decay: share of the past in each update, 0 to below 1.
    """

    def __init__(self, tensors: Callable[[], dict[str, Tensor]], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1); {decay} was given")
        self.tensors, self.decay, self.updates = tensors, decay, 0
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the present values."""
        now = self.tensors()
        if not self.updates:
            self.sums = {name: torch.zeros_like(tensor) for name, tensor in now.items()}
        sums = [self.sums[name] for name in now]
        # All tensors in one call: thousands of small ones would take longer than the step itself.
        torch._foreach_lerp_(sums, list(now.values()), 1 - self.decay)
        self.updates += 1

    @torch.no_grad()
    def take_over(self) -> None:
        """Gives the network the averages; the values that it had are lost. Nothing happens before the first update."""
        if not self.updates:
            return
        # What the zeros at the start take away of the average, as in Adam.
        correction = 1 - self.decay**self.updates
        for name, tensor in self.tensors().items():
            tensor.copy_(self.sums[name] / correction)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Gives the network the averages for a while."""
        present = {name: tensor.detach().clone() for name, tensor in self.tensors().items()}
        self.take_over()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in self.tensors().items():
                    tensor.copy_(present[name])
