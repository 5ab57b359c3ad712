"""A user's own pictures with a class for every pixel."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
from torch import Tensor

from data_sets._files import need_folder
from data_sets._masks import LAYOUT, MaskValues, PairFiles, decode_pair, pairs_in
from data_sets._pictures import DECODED_BYTES, decoded_once, picture_shape
from data_sets._split import stratified_split
from pruning.errors import UsageError

NAME = "SEGMENTATIONFOLDER"


class SEGMENTATIONFOLDER:
    """Your own pictures and masks: --data_dir holds train/ and test/ (or val/), each with images/ and masks/.

    Without these parts images/ and masks/ lie in --data_dir itself, and a fixed fifth is for testing. A mask has the
    name of its picture (perhaps with _mask at its end) and its size; the value of a pixel is its class, and 255 says
    that it has none; masks of nothing but 0 and 255 have two classes. Decoded pairs are kept in hidden files
    beside the folders where they take less than 1.5 GiB.

    Args:
        data_dir: folder that holds them.
        image_size: pixels of the square that pictures and masks are shrunk and cut to.
    """

    task = "segmentation"
    wants = {"model": "TinyUNet"}
    # Of ImageNet, as fits photographs.
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(self, data_dir: str, image_size: int = 64) -> None:
        self.root = Path(data_dir).expanduser()
        self.input_shape = picture_shape(NAME, image_size)
        need_folder(NAME, self.root)
        if not self.root.is_dir():
            raise UsageError(f"{NAME}: there is no folder {self.root}; {LAYOUT}")
        held_out = [part for part in ("test", "val") if (self.root / part).is_dir()]
        if (self.root / "train").is_dir() and held_out:
            self.pairs = {"train": pairs_in(NAME, self.root / "train"), "test": pairs_in(NAME, self.root / held_out[0])}
        else:
            pairs = pairs_in(NAME, self.root)
            if len(pairs) < 2:
                raise UsageError(f"{NAME}: {self.root} holds one picture; two are needed, one of them for testing.")
            rest, fifth = stratified_split(None, len(pairs), max(1, len(pairs) // 5), seed=0)
            parts = {"train": rest, "test": fifth}
            self.pairs = {part: [pairs[number] for number in numbers] for part, numbers in parts.items()}
        self.values = MaskValues(self._values_for_training())
        self.num_classes = self.values.num_classes
        self.notes = [self.values.note(NAME)]

    def train(self) -> tuple[Tensor, Tensor] | PairFiles:
        """Returns pictures, uint8 (N, 3, S, S), and classes, int64 (N, S, S); a Dataset of them where they are many."""
        return self._part("train")

    def test(self) -> tuple[Tensor, Tensor] | PairFiles:
        """Returns the like of the test part; pixels without a class are -100."""
        return self._part("test")

    def _part(self, part: str) -> tuple[Tensor, Tensor] | PairFiles:
        if self._are_many(part):
            return PairFiles(NAME, self.pairs[part], self.input_shape[1], self.values)
        both = self._decoded(part)
        return both[:, :3], self.values.targets(both[:, 3])

    def _values_for_training(self) -> list[int]:
        if not self._are_many("train"):
            return self._decoded("train")[:, 3].unique().tolist()
        found: set[int] = set()
        for pair in self.pairs["train"]:
            found |= set(np.unique(decode_pair(NAME, pair, self.input_shape[1])[3]).tolist())
        return sorted(found)

    def _are_many(self, part: str) -> bool:
        size = self.input_shape[1]
        return len(self.pairs[part]) * 4 * size * size > DECODED_BYTES

    def _decoded(self, part: str) -> Tensor:
        """Returns the pairs of a part, uint8 (N, 4, S, S): three colours, and what the mask says."""
        pairs, size = self.pairs[part], self.input_shape[1]
        files = list(chain.from_iterable(pairs))

        def one(number: int) -> np.ndarray:
            return decode_pair(NAME, pairs[number], size)

        cache = self.root / f".{part}-masks-{size}x{size}.pt"
        return decoded_once(NAME, files, one, shape=(len(pairs), 4, size, size), cache=cache)
