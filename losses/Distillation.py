from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from losses._fit import misfit
from pruning import UsageError
from pruning.measure.measures import Sums, measured
from pruning.modules.calls import call, scores_of

POSITIVE = {"above": 0}


class Distillation:
    """Learns from a teacher beside the run's own loss (Hinton et al. 2015, arXiv:1503.02531).

    alpha T^2 KL(teacher / T || network / T) + (1 - alpha) own loss, for classes, labels and tokens; of numbers the
    first part is alpha times the squared distance of the outputs. The teacher is a finished run, in eval mode, without
    gradients. Scores and tests are of the own loss alone, and it is what is measured.

    Args:
        teacher: run (folder or name) whose network is the teacher, or a folder in transformers' form.
        base_loss: the run's own loss (default: that of the task, the data set, or the teacher).
        temperature: T, by which scores are divided.
        alpha: share of the teacher.
    """

    def __init__(
        self,
        *,
        teacher: str,
        load_teacher: Callable[[str], nn.Module],
        make_loss: Callable[[str], Any],
        base_loss: str = "CrossEntropy",
        temperature: Annotated[float, POSITIVE] = 4.0,
        alpha: float = 0.9,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is a share, 0 to 1; {alpha} was given")
        self.temperature, self.alpha = temperature, alpha
        self.base: Any = make_loss(base_loss)
        if not hasattr(self.base, "distance"):
            raise UsageError(f"Distillation cannot learn beside {base_loss}, which has no `distance` of two networks.")
        self.kinds = getattr(self.base, "kinds", {})
        self.teacher = load_teacher(teacher).eval().requires_grad_(False)

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """The own loss alone, which is also what criteria differentiate."""
        value: Tensor = self.base(outputs, targets)
        return value

    def with_inputs(self, inputs: Any, outputs: Any, targets: Any) -> Tensor:
        """What training minimises."""
        with torch.no_grad():
            told = scores_of(call(self.teacher, inputs))
        own = scores_of(outputs)
        if not isinstance(told, Tensor) or told.shape != own.shape:
            said = tuple(told.shape) if isinstance(told, Tensor) else f"a {type(told).__name__}"
            raise misfit(self, own, targets, f"outputs of the teacher's shape, {said}")
        distance: Tensor = self.base.distance(own, told, targets, self.temperature)
        return self.alpha * distance + (1 - self.alpha) * self(outputs, targets)

    def check(self, outputs: Any, targets: Any) -> None:
        """Raises UsageError for targets that the own loss does not take; asked once, before training."""
        check = getattr(self.base, "check", None)
        if check:
            check(outputs, targets)

    def measures(self, outputs: Any, targets: Any) -> Sums:
        """What the own loss measures."""
        return measured(self.base, outputs, targets)

    def penalty(self, network: Any) -> Tensor | float:
        """What training adds to the own loss."""
        penalty = getattr(self.base, "penalty", None)
        return penalty(network) if penalty else 0.0
