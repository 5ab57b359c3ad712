from typing import Any

import torch.nn.functional as F
from torch import Tensor

from losses._fit import number_measures, paired
from pruning.measure.measures import Sums


class L1:
    """Mean absolute error of numbers, (N, k) or (N,), which outliers pull less; R^2 and errors are measured."""

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """The mean over all numbers of the batch."""
        predicted, true = paired(self, outputs, targets)
        return F.l1_loss(predicted, true)

    def measures(self, outputs: Any, targets: Any) -> Sums:
        """R^2 is the main one."""
        return number_measures(self, outputs, targets)

    def distance(self, outputs: Tensor, told: Tensor, targets: Any, temperature: float) -> Tensor:
        """The squared distance to another network's outputs, for distillation."""
        return F.mse_loss(outputs, told)
