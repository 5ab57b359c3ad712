"""The CIFAR-10 data set, from its original batches or from folders of pictures."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from data_sets._archives import cifar_part
from data_sets._pictures import class_pictures, decoded_pictures

# The original order of the labels, which is the alphabetical one.
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CIFAR10:
    """50,000 + 10,000 photographs of 10 classes, 32 x 32 pixels (Krizhevsky 2009).

    The original batches in `data_dir/cifar-10-batches-py` are used where they lie; otherwise pictures in
    `data_dir/cifar10/{train,test}/<class>/`, decoded once and kept in hidden tensor files beside them; otherwise the
    batches are downloaded.

    Args:
        data_dir: folder that holds one of the two.
    """

    input_shape = (3, 32, 32)
    num_classes = 10
    classes = CLASSES
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    flip = True
    crop = 4

    def __init__(self, data_dir: str) -> None:
        self.data_dir = data_dir

    def train(self) -> tuple[Tensor, Tensor]:
        """Returns images, uint8 (50000, 3, 32, 32), and labels, int64 (50000,)."""
        return self._part("train")

    def test(self) -> tuple[Tensor, Tensor]:
        """Returns images, uint8 (10000, 3, 32, 32), and labels, int64 (10000,)."""
        return self._part("test")

    def _part(self, part: str) -> tuple[Tensor, Tensor]:
        root = Path(self.data_dir).expanduser()
        pictures = root / "cifar10"
        # An empty folder is what a failed download leaves.
        if any(root.glob("cifar-10-batches-py/*")) or not pictures.is_dir():
            instead = f"pictures into {pictures}/{{train,test}}/<class>"
            return cifar_part("CIFAR10", self.data_dir, part == "train", instead=instead)
        files, labels = class_pictures("CIFAR10", pictures / part, CLASSES)
        return decoded_pictures("CIFAR10", files, labels, shape=self.input_shape, cache=pictures / f".{part}-32x32.pt")
