import math
from typing import Any

import torch
from torch import Tensor

from losses._fit import LEFT_OUT, check_probabilities, class_loss, divergence
from pruning import PrunableNetwork
from pruning.measure.measures import Sums, class_measures


class CrossEntropy:
    """Cross-entropy of raw scores and class indices, with optional norms of the prunable weights; accuracy is measured.

    Args:
        l1_reg: strength of the sum of absolute prunable weights.
        lp_reg: strength of the sum of |w| ** lp_power over prunable weights.
        lp_power: the exponent p of that sum.
    """

    def __init__(self, *, l1_reg: float = 0.0, lp_reg: float = 0.0, lp_power: float = 0.5) -> None:
        for name, value in (("l1_reg", l1_reg), ("lp_reg", lp_reg)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be at least 0; {value} was given")
        if not 0 < lp_power < math.inf:
            raise ValueError(f"lp_power must be positive; {lp_power} was given")
        self.l1_reg, self.lp_reg, self.lp_power = l1_reg, lp_reg, lp_power

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """The data term alone, which is also what criteria differentiate."""
        return class_loss(self, outputs, targets)

    def check(self, outputs: Any, targets: Any) -> None:
        """Raises UsageError for targets that are no classes; asked once, before training."""
        check_probabilities(self, outputs, targets)

    def measures(self, outputs: Any, targets: Any) -> Sums:
        """The accuracy; of pictures with a class per pixel, pixel accuracy and mean intersection over union."""
        return class_measures(outputs, targets)

    def distance(self, outputs: Tensor, told: Tensor, targets: Any, temperature: float) -> Tensor:
        """How far scores (B, C, ...) are from another network's, for distillation; what is left out counts nowhere."""
        scores, others = outputs.movedim(1, -1).flatten(0, -2), told.movedim(1, -1).flatten(0, -2)
        if not targets.is_floating_point():
            known = targets.flatten() != LEFT_OUT
            scores, others = scores[known], others[known]
        return divergence(scores, others, temperature)

    def penalty(self, network: PrunableNetwork) -> Tensor | float:
        """What training adds to the data term."""
        if not self.l1_reg and not self.lp_reg:
            return 0.0
        weights = list(network.prunable().values())
        total = torch.zeros((), device=weights[0].device)
        for weight in weights:
            if self.l1_reg:
                total = total + self.l1_reg * weight.abs().sum()
            if self.lp_reg:
                # The derivative of |w|**p is infinite at 0 for p < 1; masked weights sit there.
                total = total + self.lp_reg * weight.abs().clamp_min(1e-8).pow(self.lp_power).sum()
        return total
