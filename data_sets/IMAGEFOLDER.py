"""A user's own pictures."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from data_sets._files import missing, need_folder
from data_sets._pictures import PictureFiles, class_folders, class_pictures, load_pictures, picture_shape


class IMAGEFOLDER:
    """Your own pictures: --data_dir holds train/ and test/ (or val/), each with one folder per class.

    Classes are the names of the folders in alphabetical order and must be the same in both parts. Decoded pictures are
    kept in a hidden file `.train-64x64.pt` beside the folders where they take less than 1.5 GiB, so that the next
    run starts at once.

    Args:
        data_dir: folder that holds train/ and test/ or val/.
        image_size: pixels of the square that pictures are shrunk and cut to.
    """

    # Of ImageNet, as fits photographs.
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    flip = True

    def __init__(self, data_dir: str, image_size: int = 64) -> None:
        self.root = Path(data_dir).expanduser()
        self.input_shape = picture_shape("IMAGEFOLDER", image_size)
        self.crop = image_size // 8
        need_folder("IMAGEFOLDER", self.root)
        found = [part for part in ("train", "test", "val") if (self.root / part).exists()]
        if len(found) < 2 or found[0] != "train":
            reason = f"it has {' and '.join(found) if found else 'none of train, test, val'}"
            files = ["train/<class>/*.jpg", "test/<class>/*.jpg (or val/<class>/*.jpg)"]
            raise missing("IMAGEFOLDER", self.root, files, reason=reason)
        self.held_out = found[1]
        self.classes = class_folders("IMAGEFOLDER", self.root / "train")
        self.num_classes = len(self.classes)

    def train(self) -> tuple[Tensor, Tensor] | PictureFiles:
        """Returns images, uint8 (N, 3, image_size, image_size), and labels; a Dataset of them where they are many."""
        return self._part("train")

    def test(self) -> tuple[Tensor, Tensor] | PictureFiles:
        """Returns the like of test/ or, without one, val/."""
        return self._part(self.held_out)

    def _part(self, part: str) -> tuple[Tensor, Tensor] | PictureFiles:
        files, labels = class_pictures("IMAGEFOLDER", self.root / part, self.classes)
        size = self.input_shape[1]
        cache = self.root / f".{part}-{size}x{size}.pt"
        return load_pictures("IMAGEFOLDER", files, labels, shape=self.input_shape, cache=cache)
