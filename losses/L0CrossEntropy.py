from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from losses._fit import class_loss
from pruning import PrunableNetwork, UsageError


class L0CrossEntropy:
    """Cross-entropy and the expected number of weights under gates (Louizos et al. 2018, arXiv:1712.01312).

    The penalty is the sum over gates of P(z != 0) * (l0_reg * n / N + l2_reg / 2 * |w|^2), for the n weights w that the
    gate multiplies and N training samples.

    Args:
        l0_reg: lambda, the price of each weight that may be there; higher removes more (default: all together cost 0.5
            before training, as in the paper's runs).
        l2_reg: weight decay of what may be there, by the chance that it is; what has no gate decays in full.
    """

    wants: ClassVar[Mapping[str, Any]] = {"train_scheme": "L0Trainer"}
    followed_by: ClassVar[str] = "CrossEntropy"  # the loss of a run that starts from this one's network

    def __init__(self, *, l0_reg: float | None = None, l2_reg: float = 5e-5) -> None:
        for name, value in (("l0_reg", l0_reg), ("l2_reg", l2_reg)):
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be at least 0; {value} was given")
        self.l0_reg, self.l2_reg = l0_reg, l2_reg

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """The data term alone."""
        return class_loss(self, outputs, targets)

    def penalty(self, network: PrunableNetwork) -> Tensor:
        """What training adds to the data term."""
        if network.gates is None:
            raise UsageError("The loss L0CrossEntropy counts gates, which --train_scheme L0Trainer puts on a network.")
        return network.gates.penalty(self.l0_reg, self.l2_reg)
