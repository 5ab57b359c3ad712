from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from losses._fit import misfit, paired
from pruning.measure.measures import Sums


class BinaryCrossEntropy:
    """Cross-entropy of several labels that may each be there or not: raw scores (N, k), targets (N, k) of 0 and 1.

    A label counts as said where its score is above 0. Measured are the share of labels that are right, and F1, the
    mean over labels.
    """

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """The mean over samples and labels."""
        scores, labels = paired(self, outputs, targets)
        return F.binary_cross_entropy_with_logits(scores, labels)

    def check(self, outputs: Any, targets: Any) -> None:
        """Raises UsageError for targets that are no labels; asked once, before training."""
        _, labels = paired(self, outputs, targets)
        if bool(((labels < 0) | (labels > 1)).any()):
            raise misfit(self, outputs, targets, "targets from 0 to 1, one for each label")

    def measures(self, outputs: Any, targets: Any) -> Sums:
        """The share of right labels is the main one."""
        scores, labels = paired(self, outputs, targets)
        columns = labels.shape[1] if labels.dim() == 2 else 1
        said = (scores > 0).reshape(-1, columns)
        true = (labels > 0.5).reshape(-1, columns)
        right = (said == true).sum()
        hits = (said & true).sum(0)
        return {
            "label_accuracy": torch.stack([right, torch.full_like(right, said.numel())]),
            "f1": torch.cat([hits, said.sum(0) + true.sum(0)]),
        }
