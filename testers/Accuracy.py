from collections.abc import Callable
from typing import Any

from torch import Tensor

from pruning import PrunableNetwork
from pruning.measure.confusion import Tally
from pruning.measure.evaluate import evaluate
from utils.callbacks.pictures import draw_confusion


class Accuracy:
    """Accuracy and loss over the whole test data, per class as well, and how far to trust the network's confidence.

    The expected calibration error (Guo et al. 2017, arXiv:1706.04599) is the mean distance between confidence, the
    largest softmax of the outputs, and accuracy, over 15 equal bins of confidence. Writes accuracy.json, with the
    confusion matrix (row: true class, column: the network's), and, unless told not to, confusion.png.

    Args:
        confusion: draw the confusion matrix and the calibration.
    """

    def __init__(
        self,
        *,
        network: PrunableNetwork,
        loss_function: Callable[[Tensor, Tensor], Tensor],
        test_batches: Any,
        data_set: Any,
        confusion: bool = True,
    ) -> None:
        self.network, self.loss_function, self.test_batches = network, loss_function, test_batches
        self.classes, self.draw = getattr(data_set, "classes", None), confusion

    def evaluate(self, folder: Any) -> dict[str, Any]:
        """Returns test_accuracy (fraction) and test_loss; for up to 2,000 classes also what accuracy.json holds."""
        tally = Tally()

        def watched(outputs: Tensor, targets: Tensor) -> Tensor:
            tally.add(outputs, targets)
            return self.loss_function(outputs, targets)

        accuracy, loss = evaluate(self.network.model, self.test_batches, watched)
        report = tally.report()
        if report:
            folder.write_output("accuracy.json", report)
        if report and self.draw:
            folder.write_picture("confusion.png", draw_confusion(report, self.classes))
        found: dict[str, Any] = {"test_accuracy": accuracy, "test_loss": loss}
        if report:
            found["expected_calibration_error"] = report["expected_calibration_error"]
            found["class_accuracy"] = report["class_accuracy"]
        return found

    def rows(self, found: dict[str, Any]) -> list[tuple[str, str]]:
        """Returns the lines of the table at the end."""
        shares = found.get("class_accuracy", [])
        rows = []
        for name, value in found.items():
            if value is not shares:
                rows.append((name.replace("_", " "), f"{value:.4f}"))
        # A class without test images has no accuracy.
        known = sorted((share, place) for place, share in enumerate(shares) if share is not None)
        if known:
            worst = ", ".join(f"{self._name(place)}: {share:.3f}" for share, place in known[:5])
            rows.append(("lowest class accuracies", worst))
        return rows

    def _name(self, place: int) -> str:
        if self.classes and place < len(self.classes):
            return str(self.classes[place])
        return str(place)
