"""Accuracy and loss over whole data, weighted by sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pruning.modules.calls import Batches, call
from pruning.modules.modes import eval_mode

Loss = Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> mean over the batch, a scalar


def evaluate(model: nn.Module, batches: Batches, loss: Loss) -> tuple[float, float]:
    """Returns (accuracy, mean loss) over every sample that the batches hold, in eval mode.

    Outputs are scores (B, C, ...), targets class indices (B, ...); accuracy is the fraction of right argmaxes.
    """
    return means(total_sums(model, batches, loss))


def total_sums(model: nn.Module, batches: Batches, loss: Loss) -> Tensor | None:
    """Returns [summed loss, right ones, samples] over all batches, in eval mode; None if there is none."""
    sums: Tensor | None = None
    with eval_mode(model), torch.no_grad():
        for inputs, targets in batches:
            of_batch = batch_sums(call(model, inputs), targets, loss)
            sums = of_batch if sums is None else sums + of_batch
    return sums


def batch_sums(outputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    """Returns [summed loss, right ones, samples] of a batch, left on its device so that nothing waits for it."""
    return sums_of(loss(outputs, targets), outputs, targets)


def sums_of(loss: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns [summed loss, right ones, samples] for a batch whose mean loss is known already."""
    samples = len(targets)
    # Double precision keeps the sum over a large data set exact enough; mps has none.
    wide = torch.float32 if outputs.device.type == "mps" else torch.float64
    right = (outputs.argmax(1) == targets).sum().to(wide)
    # A picture with a class per pixel is one sample; its right pixels count as a share of it.
    right = right * (samples / targets.numel())
    summed_loss = loss.detach().to(wide) * samples
    return torch.stack([summed_loss, right, torch.full_like(right, samples)])


def means(sums: Tensor | None) -> tuple[float, float]:
    """Returns (accuracy, mean loss) from summed [loss, right, samples]; NaN where there was no sample."""
    if sums is None or not float(sums[2]):
        return float("nan"), float("nan")
    loss, right, samples = sums.tolist()
    return right / samples, loss / samples
