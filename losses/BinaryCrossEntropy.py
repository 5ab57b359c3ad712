from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from losses._fit import divergence, misfit, paired
from pruning.measure.measures import SCORE_BINS, Sums


class BinaryCrossEntropy:
    """Cross-entropy of several labels that may each be there or not: raw scores (N, k), targets (N, k) of 0 and 1.

    Measured are the mean over labels of average precision (scores between -16 and 16 are told apart to 1/128), and how
    often all labels of a sample are right, where one counts as said above 0.
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

    def distance(self, outputs: Tensor, told: Tensor, targets: Any, temperature: float) -> Tensor:
        """How far scores are from another network's, for distillation: T^2 KL of each label, the mean over all."""
        own, others = outputs.flatten() / temperature, told.flatten() / temperature
        # A label that may be there or not is a choice between two.
        pair, other_pair = torch.stack([own, torch.zeros_like(own)], 1), torch.stack([others, torch.zeros_like(own)], 1)
        return temperature**2 * divergence(pair, other_pair, 1.0)

    def measures(self, outputs: Any, targets: Any) -> Sums:
        """Mean average precision is the main one."""
        scores, labels = paired(self, outputs, targets)
        samples = len(labels)
        scores, true = scores.reshape(samples, -1), labels.reshape(samples, -1) > 0.5
        right = ((scores > 0) == true).all(1).sum()
        return {
            "mean_average_precision": torch.cat([_by_score(scores, true), _by_score(scores, ~true)]),
            "exact_match": torch.stack([right, torch.full_like(right, samples)]),
        }


def _by_score(scores: Tensor, counted: Tensor) -> Tensor:
    """Returns (labels * bins,) how many of those counted have a score in each bin, label by label, the lowest first."""
    labels = scores.shape[1]
    bins = ((scores.float().nan_to_num(0) + 16) * (SCORE_BINS / 32)).long().clamp(0, SCORE_BINS - 1)
    places = bins + SCORE_BINS * torch.arange(labels, device=scores.device)
    counts = torch.zeros(labels * SCORE_BINS, dtype=torch.long, device=scores.device)
    return counts.index_add_(0, places.flatten(), counted.flatten().long())
