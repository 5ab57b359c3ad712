from __future__ import annotations

import math

from torch import Tensor

from pruning.prune.criterion import Moment


class HoyerThreshold:
    """One event during training, without data: what scores under a threshold goes.

    Args:
        hoyer_threshold: score under which a weight or node goes; the penalty itself pushes down what is below 1.
    """

    moment: Moment = "during"
    needs_data: bool = False
    threshold: float | None

    def __init__(self, *, hoyer_threshold: float = 0.05) -> None:
        if not 0 <= hoyer_threshold < math.inf:
            raise ValueError(f"hoyer_threshold must be at least 0; {hoyer_threshold} was given")
        self.threshold = hoyer_threshold


def relative(sizes: Tensor, total: Tensor, squares: Tensor) -> Tensor:
    """Returns sizes by squares / total, the size under which the penalty's slope pushes to zero; 0 where all are 0."""
    return sizes * total / squares.clamp_min(1e-300)
