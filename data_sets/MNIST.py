"""The MNIST data set."""

from __future__ import annotations

from torch import Tensor

from data_sets._archives import idx_part


class MNIST:
    """60,000 + 10,000 handwritten digits of 28 x 28 pixels (LeCun, Cortes and Burges 1998).

    Args:
        data_dir: folder that holds `MNIST/raw` with the four idx files; what is missing is downloaded there.
    """

    input_shape = (1, 28, 28)
    num_classes = 10
    mean = (0.1307,)
    std = (0.3081,)

    def __init__(self, data_dir: str) -> None:
        self.data_dir = data_dir

    def train(self) -> tuple[Tensor, Tensor]:
        """Returns images, uint8 (60000, 1, 28, 28), and labels, int64 (60000,)."""
        return idx_part("MNIST", "MNIST", self.data_dir, train=True)

    def test(self) -> tuple[Tensor, Tensor]:
        """Returns images, uint8 (10000, 1, 28, 28), and labels, int64 (10000,)."""
        return idx_part("MNIST", "MNIST", self.data_dir, train=False)
