"""Optimizers and learning-rate schedules by name, all from torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

FUSED = ("cpu", "cuda")


@dataclass
class Optimization:
    """How the weights move.

    Args:
        optimizer: update rule.
        learning_rate: step size at its largest.
        momentum: for SGD and RMSPROP, 0 to below 1.
        nesterov: for SGD, take the gradient where the momentum leads.
        l2_reg: weight decay (decoupled from the gradient for ADAMW).
        lr_schedule: how the learning rate goes over training.
        milestones: for multistep, the epochs at which it is multiplied by lr_decay.
        lr_decay: factor at each milestone.
        warmup: epochs in which the learning rate rises linearly to its value.
        grad_clip: largest norm of all gradients together; 0 for no clipping.
        grad_noise: standard deviation of normal noise added to each gradient.
    """

    optimizer: Literal["ADAM", "SGD", "RMSPROP", "ADAMW"] = "ADAM"
    learning_rate: float = 2e-3
    momentum: float = 0.9
    nesterov: bool = False
    l2_reg: float = 5e-5
    lr_schedule: Literal["constant", "multistep", "cosine", "onecycle"] = "constant"
    milestones: tuple[int, ...] = ()
    lr_decay: float = 0.1
    warmup: int = 0
    grad_clip: float = 10.0
    grad_noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "l2_reg", "grad_clip", "grad_noise", "warmup", "lr_decay"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite; {value} was given")
        if any(epoch < 0 for epoch in self.milestones):
            raise ValueError(f"milestones are epochs, from 0; {min(self.milestones)} was given")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1); {self.momentum} was given")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")

    def make_optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> Optimizer:
        """Returns the optimizer over those parameters that are trained."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        rate, decay = self.learning_rate, self.l2_reg
        # One pass over the weights instead of ten: two to fifteen times faster, on CPUs too.
        fused = all(parameter.is_floating_point() and parameter.device.type in FUSED for parameter in trained)
        if self.optimizer == "RMSPROP":  # which has no fused form
            return torch.optim.RMSprop(trained, lr=rate, momentum=self.momentum, weight_decay=decay)
        if self.optimizer == "SGD":
            sgd = torch.optim.SGD(
                trained, lr=rate, momentum=self.momentum, nesterov=self.nesterov, weight_decay=decay, fused=fused
            )
            if self.momentum:
                sgd.register_step_pre_hook(_give_memories)
            return sgd
        if self.optimizer == "ADAM":
            return torch.optim.Adam(trained, lr=rate, weight_decay=decay, fused=fused)
        return torch.optim.AdamW(trained, lr=rate, weight_decay=decay, fused=fused)

    def make_schedule(self, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> LRScheduler:
        """Returns a schedule that steps once per batch."""
        steps = max(1, epochs * steps_per_epoch)
        warm = min(self.warmup * steps_per_epoch, steps - 1)
        rest = steps - warm
        if self.lr_schedule == "onecycle":
            largest = [group["lr"] for group in optimizer.param_groups]
            main: LRScheduler = OneCycleLR(optimizer, largest, rest + 1)
        elif self.lr_schedule == "cosine":
            main = CosineAnnealingLR(optimizer, T_max=rest)
        elif self.lr_schedule == "multistep":
            falls = [epoch * steps_per_epoch - warm for epoch in self.milestones]
            main = MultiStepLR(optimizer, falls, gamma=self.lr_decay)
        else:
            main = ConstantLR(optimizer, factor=1.0, total_iters=0)
        if not warm:
            return main
        rise = LinearLR(optimizer, start_factor=1 / (warm + 1), total_iters=warm)
        return SequentialLR(optimizer, [rise, main], milestones=[warm])


def _give_memories(sgd: Optimizer, *_: object) -> None:
    """Gives a parameter that moves for the first time zeros to remember: the fused update wants all or none to have.

    A layer that the batches before did not use, or that did not learn until now, would end the run.
    """
    for group in sgd.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and sgd.state[parameter].get("momentum_buffer") is None:
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
