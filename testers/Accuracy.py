from collections.abc import Callable
from typing import Any

from torch import Tensor

from pruning import PrunableNetwork
from pruning.measure.confusion import Tally
from pruning.measure.evaluate import total_sums
from pruning.measure.measures import kind_of, number, values_of, words_of
from utils.callbacks.pictures import draw_confusion


class Accuracy:
    """Loss and what it measures over the whole test data; of classes also how far to trust the network's confidence.

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
        """Returns what the loss measures ("test_accuracy"), the main measure first, and test_loss.

        Of up to 2,000 classes also what accuracy.json holds.
        """
        tally = Tally()
        sums = total_sums(self.network.model, self.test_batches, self.loss_function, tally.add)
        values = values_of(sums, self.loss_function)
        # What else may look like scores of classes (words of a language, pixels) is told by its measures alone.
        report = tally.report() if "accuracy" in values else {}
        if report:
            folder.write_output("accuracy.json", report)
        if report and self.draw:
            folder.write_picture("confusion.png", draw_confusion(report, self.classes))
        loss = values.pop("loss")
        measures = {name: kind_of(name, self.loss_function).better for name in values}
        found: dict[str, Any] = {f"test_{name}": value for name, value in values.items()}
        found |= {"test_loss": loss, "measures": measures}
        if report:
            found["expected_calibration_error"] = report["expected_calibration_error"]
            found["class_accuracy"] = report["class_accuracy"]
        return found

    def rows(self, found: dict[str, Any]) -> list[tuple[str, str]]:
        """Returns the lines of the table at the end."""
        shares = found.get("class_accuracy", [])
        rows = []
        for name, value in found.items():
            if isinstance(value, float):
                rows.append((words_of(name), number(value)))
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
