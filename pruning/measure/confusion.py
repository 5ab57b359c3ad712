"""Counts of true and predicted classes and of confidence, added up on the device, and their picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pruning.modules.calls import Batches, call
from pruning.modules.modes import eval_mode

BINS = 15  # of confidence, as in Guo et al. 2017

CLASSES = 2000  # counts of every pair of more classes (the words of a language) would fill the memory


class Tally:
    """Adds up batches of outputs (B, C, ...) and targets (B, ...); what are no classes, or too many, is left out."""

    def __init__(self) -> None:
        self.confusion: Tensor | None = None  # (classes + 1, classes), the last row for what is left out
        self.bins = torch.zeros(0)  # (3, BINS + 1): samples, summed confidence, right ones

    def add(self, outputs: Any, targets: Tensor) -> None:
        """Counts a batch, without waiting for the device."""
        if targets.is_floating_point() or not isinstance(outputs, Tensor) or outputs.ndim < 2:
            return
        if outputs.shape[:1] + outputs.shape[2:] != targets.shape or outputs.shape[1] > CLASSES:
            return
        classes, wide = outputs.shape[1], torch.float32 if outputs.device.type == "mps" else torch.float64
        if self.confusion is None:
            self.confusion = torch.zeros(classes + 1, classes, dtype=torch.long, device=outputs.device)
            self.bins = torch.zeros(3, BINS + 1, dtype=wide, device=outputs.device)
        scores, targets = outputs.detach().movedim(1, -1).reshape(-1, classes), targets.flatten()
        known = (targets >= 0) & (targets < classes)  # some losses leave out samples by their label
        confidence, said = scores.to(wide).softmax(1).max(1)
        at = targets.where(known, classes) * classes + said
        self.confusion.view(-1).index_add_(0, at, torch.ones_like(at))
        # Bins are open below and closed above; what is no number falls into the last one.
        place = (confidence * BINS).ceil().nan_to_num(BINS).clamp(1, BINS).long() - 1
        values = torch.stack([torch.ones_like(confidence), confidence, (said == targets).to(wide)])  # (3, samples)
        self.bins.index_add_(1, place.where(known, BINS), values)

    def report(self) -> dict[str, Any]:
        """Returns class accuracies (None for a class without samples), calibration and confusion; empty for none."""
        samples, confidence, right = self.bins[:, :BINS].cpu() if self.confusion is not None else torch.zeros(3, BINS)
        if self.confusion is None or not samples.sum():
            return {}
        confusion = self.confusion[:-1].cpu()
        there = samples.clamp(min=1)
        shares = confusion.diagonal().double() / confusion.sum(1)
        return {
            "class_accuracy": [None if share != share else share for share in shares.tolist()],
            "expected_calibration_error": float((confidence - right).abs().sum() / samples.sum()),
            "calibration": {
                "samples": samples.long().tolist(),
                "confidence": (confidence / there).tolist(),
                "accuracy": (right / there).tolist(),
            },
            "confusion": confusion.tolist(),
        }


def tally_of(model: nn.Module, batches: Batches) -> Tally:
    """Counts every sample that the batches hold, in eval mode."""
    tally = Tally()
    with eval_mode(model), torch.no_grad():
        for inputs, targets in batches:
            tally.add(call(model, inputs), targets)
    return tally
