"""Counts of true and predicted classes and of confidence, added up on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pruning.measure.measures import are_class_scores
from pruning.modules.calls import Batches, call, pairs, scores_of
from pruning.modules.modes import eval_mode

BINS = 15  # of confidence, as in Guo et al. 2017 (arXiv:1706.04599)

CLASSES = 2000  # counts of every pair of more classes (the words of a language) would fill the memory


class Tally:
    """Adds up batches of outputs (B, C, ...) and targets (B, ...); what are no classes, or too many, is left out."""

    def __init__(self) -> None:
        self.confusion: Tensor | None = None  # (classes + 1, classes), the last row for what is left out
        self.bins = torch.zeros(0)  # (3, BINS + 1): samples, summed confidence, right ones

    def add(self, outputs: Any, targets: Tensor) -> None:
        """Counts a batch, without waiting for the device."""
        outputs = scores_of(outputs)
        if not are_class_scores(outputs, targets) or outputs.shape[1] > CLASSES:
            return
        classes = outputs.shape[1]
        # mps has no double precision.
        wide = torch.float32 if outputs.device.type == "mps" else torch.float64
        if self.confusion is None:
            self.confusion = torch.zeros(classes + 1, classes, dtype=torch.long, device=outputs.device)
            self.bins = torch.zeros(3, BINS + 1, dtype=wide, device=outputs.device)
        scores = outputs.detach().movedim(1, -1).reshape(-1, classes)
        targets = targets.flatten()
        # Some losses leave out samples by their label.
        known = (targets >= 0) & (targets < classes)
        confidence, predicted = scores.to(wide).softmax(1).max(1)

        pairs = targets.where(known, classes) * classes + predicted
        self.confusion.view(-1).index_add_(0, pairs, torch.ones_like(pairs))

        # Bins are open below and closed above; what is no number falls into the last one.
        bins = (confidence * BINS).ceil().nan_to_num(BINS).clamp(1, BINS).long() - 1
        right = (predicted == targets).to(wide)
        values = torch.stack([torch.ones_like(confidence), confidence, right])  # (3, samples)
        self.bins.index_add_(1, bins.where(known, BINS), values)

    def report(self) -> dict[str, Any]:
        """Returns class accuracies (None for a class without samples), calibration and confusion; empty for none."""
        if self.confusion is None:
            return {}
        samples, confidence, right = self.bins[:, :BINS].cpu()
        if not samples.sum():
            return {}
        confusion = self.confusion[:-1].cpu()
        # A class without samples is 0 / 0, which JSON has no number for.
        shares = (confusion.diagonal().double() / confusion.sum(1)).tolist()
        per_bin = samples.clamp(min=1)
        return {
            "class_accuracy": [None if share != share else share for share in shares],
            "expected_calibration_error": float((confidence - right).abs().sum() / samples.sum()),
            "calibration": {
                "samples": samples.long().tolist(),
                "confidence": (confidence / per_bin).tolist(),
                "accuracy": (right / per_bin).tolist(),
            },
            "confusion": confusion.tolist(),
        }


def tally_of(model: nn.Module, batches: Batches) -> Tally:
    """Counts every sample that the batches hold, in eval mode."""
    tally = Tally()
    with eval_mode(model), torch.no_grad():
        for inputs, targets in pairs(batches):
            tally.add(call(model, inputs), targets)
    return tally
