"""The Omniglot data set, as a classification of characters."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from data_sets._files import need_folder, reading
from data_sets._pictures import decoded_pictures, picture_shape, pictures_below
from pruning.errors import UsageError

URL = "https://github.com/brendenlake/omniglot/tree/master/python"
HALVES = ("images_background", "images_evaluation")
DRAWINGS, FOR_TRAINING = 20, 15  # of each character
FULL_SIZE = 105


class OMNIGLOT:
    """1,623 characters of 50 alphabets, 20 drawings of each (Lake et al. 2015): 15 for training, 5 for testing.

    Every character of the background and the evaluation alphabets is a class, in the order of their paths. Persons 1 to
    15 drew the training part, persons 16 to 20 the test part. Ink is bright on black, as in MNIST.

    Args:
        data_dir: folder that holds `omniglot-py/{images_background,images_evaluation}`; downloaded where missing.
        image_size: pixels of the square that the drawings of 105 x 105 are shrunk to, 1 to 105.
    """

    num_classes = 1623
    # Of the drawings in full size, where every pixel is ink or none: std = sqrt(mean * (1 - mean)).
    mean = (0.078,)
    std = (0.268,)

    def __init__(self, data_dir: str, image_size: int = 28) -> None:
        if image_size > FULL_SIZE:
            raise UsageError(f"OMNIGLOT: image_size {image_size} is above {FULL_SIZE}, the size of the drawings")
        self.data_dir = Path(data_dir).expanduser()
        self.input_shape = picture_shape("OMNIGLOT", image_size, channels=1)

    def train(self) -> tuple[Tensor, Tensor]:
        """Returns images, uint8 (24345, 1, image_size, image_size), and labels, int64 (24345,)."""
        return self._part(range(FOR_TRAINING), "train")

    def test(self) -> tuple[Tensor, Tensor]:
        """Returns images, uint8 (8115, 1, image_size, image_size), and labels, int64 (8115,)."""
        return self._part(range(FOR_TRAINING, DRAWINGS), "test")

    def _part(self, persons: range, part: str) -> tuple[Tensor, Tensor]:
        characters: list[list[str]] = []
        for half in HALVES:
            characters += self._characters(half)
        if len(characters) != self.num_classes:
            found = f"{len(characters)} characters, not {self.num_classes}"
            raise UsageError(f"OMNIGLOT: {self.data_dir / 'omniglot-py'} holds {found}; put the whole data set there")
        files: list[str] = []
        for drawings in characters:
            files += [drawings[person] for person in persons]
        labels = torch.arange(self.num_classes).repeat_interleave(len(persons))
        size = self.input_shape[1]
        cache = self.data_dir / "omniglot-py" / f".{part}-{size}x{size}.pt"
        images, labels = decoded_pictures("OMNIGLOT", files, labels, shape=self.input_shape, cache=cache)
        return 255 - images, labels  # stored as black ink on white

    def _characters(self, half: str) -> list[list[str]]:
        """The drawings of each character, sorted by person: `<alphabet>/<character>/<number>_<person>.png`."""
        folder = self.data_dir / "omniglot-py" / half
        need_folder("OMNIGLOT", folder)
        if not folder.exists():
            from torchvision.datasets import Omniglot

            with reading("OMNIGLOT", folder.parent, [f"{name}/" for name in HALVES], url=URL):
                Omniglot(self.data_dir, background=half == HALVES[0], download=True)
        drawings: dict[str, list[str]] = {}
        for file in pictures_below(folder):
            drawings.setdefault(os.path.dirname(file), []).append(file)
        for character, files in drawings.items():
            if len(files) != DRAWINGS:
                raise UsageError(f"OMNIGLOT: {character} holds {len(files)} drawings, not {DRAWINGS}")
        return [drawings[character] for character in sorted(drawings)]
