"""Pictures with a class for every pixel: which mask belongs to which picture, and both as one tensor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data_sets._files import need_folder
from data_sets._pictures import pictures_below, readable
from data_sets._sources import LEFT_OUT
from pruning.errors import UsageError

PICTURES, MASKS = "images", "masks"
MASK_ENDING = "_mask"  # of a mask's name, where it does not have the picture's own
NO_CLASS = 255  # of a mask's pixel that has none, as in Pascal VOC and Cityscapes

Pair = tuple[str, str]  # the files of a picture and of its mask


def pairs_in(name: str, folder: Path) -> list[Pair]:
    """Returns the pictures in `folder/images` with their masks in `folder/masks`, by name, sorted.

    Raises:
        UsageError: a picture without a mask, a mask without a picture, or no picture at all.
    """
    for part in (PICTURES, MASKS):
        need_folder(name, folder / part)
        if not (folder / part).is_dir():
            raise UsageError(f"{name}: there is no folder {folder / part}; {LAYOUT}")
    pictures = _by_stem(folder / PICTURES)
    masks = {stem.removesuffix(MASK_ENDING): file for stem, file in _by_stem(folder / MASKS).items()}
    masks |= _by_stem(folder / MASKS)  # a picture may itself be called so
    if not pictures:
        raise UsageError(f"{name}: {folder / PICTURES} holds no pictures; {LAYOUT}")
    alone = sorted(set(pictures) - set(masks))
    if alone:
        raise UsageError(f"{name}: {pictures[alone[0]]} has no mask in {folder / MASKS} ({len(alone)} such).")
    pairs = [(pictures[stem], masks[stem]) for stem in sorted(pictures)]
    unused = sorted(set(masks.values()) - {mask for _, mask in pairs})
    if unused:
        raise UsageError(f"{name}: {unused[0]} has no picture in {folder / PICTURES} ({len(unused)} such).")
    return pairs


LAYOUT = "put pictures into images/ and masks, whose pixels are class numbers, under the same names into masks/."


def _by_stem(folder: Path) -> dict[str, str]:
    found = {}
    for file in pictures_below(folder):
        stem = os.path.splitext(os.path.relpath(file, folder))[0]
        found[stem] = file
    return found


def decode_pair(name: str, pair: Pair, size: int) -> np.ndarray:
    """Returns a picture and its mask, uint8 (4, size, size): three colours, and what the mask says.

    Larger ones are shrunk, then both are cut to the middle alike; a mask's values are never mixed.

    Raises:
        UsageError: one cannot be read, they differ in size, or the mask has colours.
    """
    from PIL import Image, ImageOps

    picture_file, mask_file = pair
    with readable(name, picture_file), Image.open(picture_file) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    with readable(name, mask_file), Image.open(mask_file) as opened:
        mask = ImageOps.exif_transpose(opened)
        values = Image.fromarray(_values(name, mask_file, np.array(mask)))
    if picture.size != values.size:
        sizes = f"{'x'.join(map(str, picture.size))} pixels, its mask {mask_file} {'x'.join(map(str, values.size))}"
        raise UsageError(f"{name}: {picture_file} has {sizes}.")
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
        values = ImageOps.fit(values, (size, size), Image.Resampling.NEAREST)
    return np.concatenate([np.array(picture), np.array(values)[:, :, None]], axis=2).transpose(2, 0, 1)


def _values(name: str, file: str, pixels: np.ndarray) -> np.ndarray:
    """Returns a mask's values, uint8 (height, width)."""
    if pixels.ndim == 3:
        colours = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1]
        if (colours != colours[:, :, :1]).any():
            raise UsageError(f"{name}: the mask {file} has colours; its pixels must be class numbers, 0 to {NO_CLASS}.")
        pixels = colours[:, :, 0]
    if pixels.min(initial=0) < 0 or pixels.max(initial=0) > NO_CLASS:
        raise UsageError(f"{name}: the mask {file} holds {pixels.max()}; class numbers go from 0 to {NO_CLASS}.")
    return pixels.astype(np.uint8)


class MaskValues:
    """What the values in masks mean.

    They are class numbers, and 255 means none; in masks of nothing but 0 and 255, 255 is class 1.

    Args:
        found: the different values in all masks for training.
    """

    def __init__(self, found: Sequence[int]) -> None:
        self.two = set(found) == {0, NO_CLASS}
        self.classes = sorted({int(value) for value in found} - {NO_CLASS})
        self.num_classes = 2 if self.two else max(self.classes, default=0) + 1

    def targets(self, masks: Tensor) -> Tensor:
        """Returns masks, uint8 of any shape, as class numbers, int64, with -100 for what has no class.

        Raises:
            UsageError: a value besides 0 and 255, where the masks for training have no other.
        """
        if self.two:
            others = masks[(masks != 0) & (masks != NO_CLASS)]
            if len(others):
                raise UsageError(f"A mask for testing holds {int(others[0])}; those for training hold only 0 and 255.")
            return (masks == NO_CLASS).long()
        return torch.where(masks == NO_CLASS, LEFT_OUT, masks.long())

    def note(self, name: str) -> str:
        """Returns a line on what was found."""
        if self.two:
            return f"{name}: the masks hold 0 and 255, which are taken as classes 0 and 1"
        missing = self.num_classes - len(self.classes)
        gaps = f", of which {missing} in no mask for training" if missing else ""
        return f"{name}: the masks hold {self.num_classes} classes{gaps}; pixels of 255 do not count"


class PairFiles(Dataset):
    """Pairs decoded when they are asked for: (picture, uint8 (3, size, size), targets, int64 (size, size))."""

    def __init__(self, name: str, pairs: Sequence[Pair], size: int, values: MaskValues) -> None:
        self.name, self.pairs, self.size, self.values = name, pairs, size, values

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        both = torch.from_numpy(decode_pair(self.name, self.pairs[index], self.size))
        return both[:3], self.values.targets(both[3])
