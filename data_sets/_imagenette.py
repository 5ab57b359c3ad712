"""What IMAGENETTE and IMAGEWOOF share: ten classes of ImageNet, pictures whose shorter side is 160 pixels."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from data_sets._files import missing, need_folder
from data_sets._pictures import PictureFiles, class_pictures, load_pictures, picture_shape

FILES = ("train/<wnid>/*.JPEG", "val/<wnid>/*.JPEG")
# Of ImageNet, from which the pictures come.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TenOfImageNet:
    """Reads `data_dir/<folder>/{train,val}/<wnid>/*.JPEG`; `val` is the test part.

    Args:
        data_dir: folder that holds the data set's folder.
        image_size: pixels of the square that pictures are shrunk and cut to.
    """

    num_classes = 10
    mean = MEAN
    std = STD
    flip = True
    folder = ""
    url = ""
    classes: tuple[str, ...] = ()

    def __init__(self, data_dir: str, image_size: int = 128) -> None:
        self.root = Path(data_dir).expanduser() / self.folder
        self.input_shape = picture_shape(type(self).__name__, image_size)
        self.crop = image_size // 8

    def train(self) -> tuple[Tensor, Tensor] | PictureFiles:
        """Returns images, uint8 (N, 3, image_size, image_size), and labels; a Dataset of them where they are many."""
        return self._part("train")

    def test(self) -> tuple[Tensor, Tensor] | PictureFiles:
        """Returns the like of `val`."""
        return self._part("val")

    def fetch(self) -> None:
        """Called where the folder is not there: says what to put where. A set that can be downloaded does so."""
        raise missing(type(self).__name__, self.root, FILES, reason="the folder is missing", url=self.url)

    def _part(self, part: str) -> tuple[Tensor, Tensor] | PictureFiles:
        name, size = type(self).__name__, self.input_shape[1]
        need_folder(name, self.root)
        if not self.root.exists():
            self.fetch()
        files, labels = class_pictures(name, self.root / part, self.classes)
        cache = self.root / f".{part}-{size}x{size}.pt"
        return load_pictures(name, files, labels, shape=self.input_shape, cache=cache)
