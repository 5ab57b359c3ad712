"""Loss and measures over whole data, weighted by sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pruning.measure.measures import Sums, added_up, measured, values_of, wide
from pruning.modules.calls import Batches, call, inputs_for, pairs, samples_in
from pruning.modules.modes import eval_mode, loss_mode

Loss = Callable[[Any, Any], Tensor]  # (outputs, targets) -> mean over the batch, a scalar
Watch = Callable[[Any, Any], None]  # shown (outputs, targets)


def evaluate(model: nn.Module, batches: Batches, loss: Loss) -> tuple[float, float]:
    """Returns (accuracy, mean loss) over every sample that the batches hold, in eval mode.

    Outputs are scores (B, C, ...), targets class indices (B, ...); accuracy is the fraction of right argmaxes, and NaN
    where they are anything else. `measure` tells more.
    """
    found = measure(model, batches, loss)
    accuracy = found.get("accuracy", found.get("pixel_accuracy", math.nan))
    return accuracy, found["loss"]


def measure(model: nn.Module, batches: Batches, loss: Loss) -> dict[str, float]:
    """Returns the mean loss ("loss") and everything that the loss measures, by name, over every sample."""
    return values_of(total_sums(model, batches, loss), loss)


def total_sums(model: nn.Module, batches: Batches, loss: Loss, watch: Watch | None = None) -> Sums | None:
    """Returns the sums of loss and measures over all batches, in eval mode; None if there is none.

    Args:
        model: what is evaluated.
        batches: pairs (inputs, targets), or dicts with "labels".
        loss: (outputs, targets) -> the mean over a batch.
        watch: shown the outputs and targets of every batch.
    """
    sums: Sums | None = None
    with eval_mode(model), loss_mode(model, loss), torch.no_grad():
        for inputs, targets in pairs(batches):
            outputs = call(model, inputs_for(loss, model, inputs, targets))
            sums = added_up(sums, sums_of(loss(outputs, targets), outputs, targets, loss))
            if watch is not None:
                watch(outputs, targets)
    return sums


def sums_of(value: Tensor, outputs: Any, targets: Any, loss: Any) -> Sums:
    """Returns the sums of a batch whose mean loss is known already, left on its device so that nothing waits for it.

    "loss" holds [summed loss, samples]; what else there is, the loss says.
    """
    samples = samples_in(targets)
    summed_loss = value.detach().to(wide(value)) * samples
    sums = {"loss": torch.stack([summed_loss, torch.full_like(summed_loss, samples)])}
    return sums | measured(loss, outputs, targets)
