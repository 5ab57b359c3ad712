"""Folders of picture files, decoded once into a byte tensor that is kept beside them."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data_sets._files import BAD_INPUT, need_folder, reading
from pruning.errors import UsageError, nearest

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
DECODED_BYTES = 3 * 2**29  # more than this is decoded anew for every batch
log = logging.getLogger(__name__)


def class_folders(name: str, folder: Path) -> list[str]:
    """The sorted sub-folders of `folder`, one per class; hidden ones do not count."""
    need_folder(name, folder)
    if not folder.is_dir():
        raise UsageError(f"{name}: there is no folder {folder}; it should hold one folder of pictures per class")
    with reading(name, folder, ["one folder of pictures per class"]):
        classes = sorted(one.name for one in os.scandir(folder) if one.is_dir() and not one.name.startswith("."))
    if not classes:
        raise UsageError(f"{name}: {folder} is empty; it should hold one folder of pictures per class")
    return classes


def class_pictures(name: str, folder: Path, classes: Sequence[str]) -> tuple[list[str], Tensor]:
    """Lists the pictures of every class, however deep they lie, in alphabetical order, and their labels.

    Args:
        name: of the data set, for messages.
        folder: holds one folder per class.
        classes: that must be there, no more and no fewer; a class's position is its label.
    """
    found = class_folders(name, folder)
    _refuse(name, folder, "lacks", set(classes) - set(found), found)
    _refuse(name, folder, "has the unknown", set(found) - set(classes), classes)
    files: list[str] = []
    labels: list[int] = []
    for label, one in enumerate(classes):
        pictures = pictures_below(folder / one)
        if not pictures:
            raise UsageError(f"{name}: class folder {folder / one} holds no pictures ({', '.join(ENDINGS[:3])}, ...)")
        files += pictures
        labels += [label] * len(pictures)
    return files, torch.tensor(labels)


def _refuse(name: str, folder: Path, problem: str, wrong: set[str], meant: Sequence[str]) -> None:
    """Raises UsageError for class folders that are wrong, if there are any; `meant` are those that might be meant."""
    if wrong:
        first = min(wrong)
        hint = nearest(first, meant)
        raise UsageError(f"{name}: {folder} {problem} class folder '{first}' ({len(wrong)} such).{hint}")


def pictures_below(folder: Path) -> list[str]:
    """All picture files in a folder and its sub-folders, sorted; as plain strings, which sort ten times as fast."""
    found = []
    for place, _, names in os.walk(folder):
        for file in names:
            is_hidden = file.startswith(".")
            if file.lower().endswith(ENDINGS) and not is_hidden:
                found.append(os.path.join(place, file))
    return sorted(found)


def load_pictures(
    name: str, files: Sequence[str], labels: Tensor, *, shape: tuple[int, int, int], cache: Path
) -> tuple[Tensor, Tensor] | PictureFiles:
    """Like `decoded_pictures` where the result fits into `DECODED_BYTES`; else a Dataset that reads one by one."""
    if len(files) * math.prod(shape) > DECODED_BYTES:
        return PictureFiles(name, files, labels, shape)
    return decoded_pictures(name, files, labels, shape=shape, cache=cache)


def decoded_pictures(
    name: str, files: Sequence[str], labels: Tensor, *, shape: tuple[int, int, int], cache: Path
) -> tuple[Tensor, Tensor]:
    """Decodes all pictures at once, or finds them decoded.

    Args:
        name: of the data set, for messages.
        files: the pictures.
        labels: (N,) class numbers.
        shape: (C, H, W) of the result, C = 1 (grey) or 3; larger pictures are shrunk, then cut to the middle.
        cache: file that keeps the decoded pictures; rebuilt when pictures changed or it is damaged.

    Returns:
        images, uint8 (N, C, H, W), and labels.
    """

    def one(number: int) -> np.ndarray:
        return decode(name, files[number], shape)

    return decoded_once(name, files, one, shape=(len(files), *shape), cache=cache), labels


def decoded_once(
    name: str, files: Sequence[str], decode_one: Callable[[int], np.ndarray], *, shape: tuple[int, ...], cache: Path
) -> Tensor:
    """Returns what is made of files, uint8 `shape`; from the cache where it was made of them as they are.

    Args:
        name: of the data set, for messages.
        files: that all of it is made of.
        decode_one: number of a sample -> uint8 `shape[1:]`.
        shape: of the result; the first is the number of samples.
        cache: file that keeps it; rebuilt when a file changed or it is damaged.
    """
    with reading(name, cache.parent, ["the pictures"]):
        print_of_files = _fingerprint(files, cache.parent, shape[1:])
    images = _from_cache(cache, print_of_files, shape)
    if images is None:
        log.info("%s: decoding %d pictures once; they are kept in %s", name, shape[0], cache)
        images = _decode_all(decode_one, shape)
        _keep(cache, print_of_files, images)
    return images


class PictureFiles(Dataset):
    """Pictures decoded when they are asked for: (uint8 (C, H, W), class number)."""

    def __init__(self, name: str, files: Sequence[str], labels: Tensor, shape: tuple[int, int, int]) -> None:
        self.name, self.files, self.targets, self.shape = name, files, labels, shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = decode(self.name, self.files[index], self.shape)
        return torch.from_numpy(pixels), int(self.targets[index])


def decode(name: str, file: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Reads one picture, uint8 of `shape`; a damaged one is named in the error."""
    from PIL import Image, ImageOps

    channels, height, width = shape
    mode = "L" if channels == 1 else "RGB"
    size = (width, height)  # the other way round than tensors have it
    with readable(name, file), Image.open(file) as opened:
        opened.draft(mode, size)  # a large JPEG is decoded at an eighth, a quarter or half of its size
        picture = ImageOps.exif_transpose(opened).convert(mode)
        if picture.size != size:
            picture = ImageOps.fit(picture, size, Image.Resampling.BILINEAR)
    pixels = np.array(picture).reshape(height, width, channels)
    return pixels.transpose(2, 0, 1).copy()


@contextmanager
def readable(name: str, file: str) -> Iterator[None]:
    """Turns what goes wrong with a picture in the body into one UsageError that names it."""
    from PIL import Image

    try:
        yield
    except UsageError:
        raise
    except (*BAD_INPUT, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise UsageError(f"{name}: {file} is no readable picture ({reason}); replace or delete it") from error


def _decode_all(decode_one: Callable[[int], np.ndarray], shape: tuple[int, ...]) -> Tensor:
    images = np.empty(shape, dtype=np.uint8)

    def fill(start: int) -> None:
        for at in range(start, min(start + 256, len(images))):
            images[at] = decode_one(at)

    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(max_workers=threads) as pool:  # decoders release the interpreter's lock
        starts = range(0, len(images), 256)
        list(pool.map(fill, starts))  # which raises what went wrong in a thread
    return torch.from_numpy(images)


def _fingerprint(files: Sequence[str], root: Path, shape: tuple[int, ...]) -> str:
    """Changes whenever a picture is added, removed, renamed or written, or another size is asked for."""
    sha = hashlib.sha256(repr(shape).encode())
    for file in files:
        stat = os.stat(file)
        # Relative, so that a folder may move together with its cache.
        relative = file.removeprefix(str(root))
        line = f"{relative}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        sha.update(line.encode(errors="surrogateescape"))  # names need not be UTF-8
    return sha.hexdigest()


def _from_cache(cache: Path, print_of_files: str, shape: tuple[int, ...]) -> Tensor | None:
    """The pictures kept, or None unless they are whole and belong to the files as they are now."""
    if not cache.is_file():
        return None
    try:
        kept: Any = torch.load(cache, weights_only=True)
        images = kept["images"]
        whole = kept["files"] == print_of_files and tuple(images.shape) == shape and images.dtype == torch.uint8
        whole = whole and kept["crc32"] == _checksum(images)
    except BAD_INPUT as error:
        log.info("%s is damaged (%s) and is built anew", cache, type(error).__name__)
        return None
    return images if whole else None


def _keep(cache: Path, print_of_files: str, images: Tensor) -> None:
    """Writes the cache under another name first: a run killed meanwhile leaves no half file under the real one."""
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}.tmp")
    try:
        torch.save({"files": print_of_files, "crc32": _checksum(images), "images": images}, temporary)
        temporary.replace(cache)
    except (OSError, RuntimeError) as error:  # a full disk or a read-only folder only costs the time to decode again
        log.info("cannot keep decoded pictures in %s (%s)", cache, error)
        with suppress(OSError):
            temporary.unlink()


def _checksum(images: Tensor) -> int:
    # A view of the memory: a copy of all pictures would take it twice.
    return zlib.crc32(images.numpy().data)


def picture_shape(name: str, image_size: int, channels: int = 3) -> tuple[int, int, int]:
    """(channels, image_size, image_size), for a size that a picture can have."""
    if image_size < 1:
        raise UsageError(f"{name}: image_size {image_size} is too small; at least 1 pixel is needed")
    return channels, image_size, image_size
