"""The Fashion-MNIST data set."""

from __future__ import annotations

from torch import Tensor

from data_sets._archives import idx_part


class FASHIONMNIST:
    """60,000 + 10,000 pictures of clothes, 28 x 28 pixels, stored like MNIST (Xiao et al. 2017, arXiv:1708.07747).

    Args:
        data_dir: folder that holds `FashionMNIST/raw` with the four idx files; what is missing is downloaded there.
    """

    input_shape = (1, 28, 28)
    num_classes = 10
    classes = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
    mean = (0.2860,)
    std = (0.3530,)

    def __init__(self, data_dir: str) -> None:
        self.data_dir = data_dir

    def train(self) -> tuple[Tensor, Tensor]:
        """Returns images, uint8 (60000, 1, 28, 28), and labels, int64 (60000,)."""
        return idx_part("FASHIONMNIST", "FashionMNIST", self.data_dir, train=True)

    def test(self) -> tuple[Tensor, Tensor]:
        """Returns images, uint8 (10000, 1, 28, 28), and labels, int64 (10000,)."""
        return idx_part("FASHIONMNIST", "FashionMNIST", self.data_dir, train=False)
