"""Statistics of batch norms measured anew after a cut."""

from __future__ import annotations

import torch
from torch import nn

from pruning.modules.calls import Batches, call
from pruning.modules.modes import eval_mode
from pruning.scores.gradients import BATCH_NORMS, on_device


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Batches) -> None:
    """Measures the running statistics of batch norms anew, as plain averages over the batches.

    A removed channel shifts what follows, and statistics of before the cut no longer describe it.
    """
    batch_norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    norms = [norm for norm in batch_norms if norm.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    with eval_mode(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # a cumulative average
        for inputs, _ in on_device(batches, model):
            call(model, inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
