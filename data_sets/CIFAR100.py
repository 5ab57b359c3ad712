"""The CIFAR-100 data set."""

from __future__ import annotations

from torch import Tensor

from data_sets._archives import cifar_part


class CIFAR100:
    """50,000 + 10,000 photographs of 100 classes, 32 x 32 pixels (Krizhevsky 2009).

    Args:
        data_dir: folder that holds `cifar-100-python`; what is missing is downloaded there.
    """

    input_shape = (3, 32, 32)
    num_classes = 100
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    flip = True
    crop = 4

    def __init__(self, data_dir: str) -> None:
        self.data_dir = data_dir

    def train(self) -> tuple[Tensor, Tensor]:
        """Returns images, uint8 (50000, 3, 32, 32), and labels, int64 (50000,)."""
        return cifar_part("CIFAR100", self.data_dir, train=True)

    def test(self) -> tuple[Tensor, Tensor]:
        """Returns images, uint8 (10000, 3, 32, 32), and labels, int64 (10000,)."""
        return cifar_part("CIFAR100", self.data_dir, train=False)
