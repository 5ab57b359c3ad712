"""The Tiny ImageNet data set."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from data_sets._files import missing, need_folder, reading
from data_sets._pictures import PictureFiles, class_folders, class_pictures, load_pictures
from pruning.errors import UsageError

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
FILES = ("train/<wnid>/images/*.JPEG", "val/images/*.JPEG", "val/val_annotations.txt")


class TINYIMAGENET:
    """100,000 + 10,000 photographs of 200 classes of ImageNet, 64 x 64 pixels (Le and Yang 2015).

    The validation part is the test part, since the labels of the real test part were never published. torchvision has
    no reader for it, so its archive must be unpacked by hand.

    Args:
        data_dir: folder that holds `tiny-imagenet-200`.
    """

    input_shape = (3, 64, 64)
    num_classes = 200
    mean = (0.4802, 0.4481, 0.3975)
    std = (0.2770, 0.2691, 0.2821)
    flip = True
    crop = 8

    def __init__(self, data_dir: str) -> None:
        self.root = Path(data_dir).expanduser() / "tiny-imagenet-200"

    def train(self) -> tuple[Tensor, Tensor] | PictureFiles:
        """Returns images, uint8 (100000, 3, 64, 64), and labels, int64; a Dataset of them where memory is scarce."""
        files, labels = class_pictures("TINYIMAGENET", self.root / "train", self._classes())
        return self._load(files, labels, "train")

    def test(self) -> tuple[Tensor, Tensor] | PictureFiles:
        """Returns images, uint8 (10000, 3, 64, 64), and labels, int64 (10000,)."""
        label_of = {wnid: label for label, wnid in enumerate(self._classes())}
        notes = self.root / "val" / "val_annotations.txt"
        files, labels = [], []
        with reading("TINYIMAGENET", self.root, FILES, url=URL):
            for number, line in enumerate(notes.read_text().splitlines(), start=1):
                fields = line.split("\t")  # file name, class, four corners of a box
                if len(fields) < 2 or fields[1] not in label_of:
                    raise UsageError(f"TINYIMAGENET: {notes} line {number} is damaged: '{line[:60]}'")
                files.append(str(self.root / "val" / "images" / fields[0]))
                labels.append(label_of[fields[1]])
        if not files:
            raise missing("TINYIMAGENET", self.root, FILES, reason=f"{notes} is empty", url=URL)
        return self._load(files, torch.tensor(labels), "val")

    def _classes(self) -> list[str]:
        need_folder("TINYIMAGENET", self.root)
        if not (self.root / "train").is_dir():
            reason = "the folder or its part train is missing"
            raise missing("TINYIMAGENET", self.root, FILES, reason=reason, url=URL)
        classes = class_folders("TINYIMAGENET", self.root / "train")
        if len(classes) != self.num_classes:
            raise UsageError(f"TINYIMAGENET: {self.root / 'train'} holds {len(classes)} class folders, not 200")
        return classes

    def _load(self, files: list[str], labels: Tensor, part: str) -> tuple[Tensor, Tensor] | PictureFiles:
        cache = self.root / f".{part}-64x64.pt"
        return load_pictures("TINYIMAGENET", files, labels, shape=self.input_shape, cache=cache)
