from collections.abc import Callable
from typing import Any

from torch import Tensor

from pruning import PrunableNetwork
from pruning.evaluate import evaluate


class Accuracy:
    """Accuracy and loss over the whole test data."""

    def __init__(
        self, *, network: PrunableNetwork, loss_function: Callable[[Tensor, Tensor], Tensor], test_batches: Any
    ) -> None:
        self.network, self.loss_function, self.test_batches = network, loss_function, test_batches

    def evaluate(self) -> dict[str, float]:
        """Returns test_accuracy (fraction) and test_loss."""
        accuracy, loss = evaluate(self.network.model, self.test_batches, self.loss_function)
        return {"test_accuracy": accuracy, "test_loss": loss}
