"""The sets that torchvision reads and downloads: MNIST's idx files and CIFAR's pickled batches, as byte tensors."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_sets._files import missing, need_folder, reading
from pruning.errors import UsageError

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx_part(name: str, reader: str, data_dir: str, train: bool) -> tuple[Tensor, Tensor]:
    """Reads one part of a data set stored like MNIST, downloading it where it is missing.

    Args:
        name: of the data set, for messages.
        reader: torchvision's class, whose name is also the folder's.
        data_dir: files lie in `data_dir/<reader>/raw`.
        train: training part or test part.

    Returns:
        images, uint8 (N, 1, H, W), and labels, int64 (N,).

    Raises:
        UsageError: if a file is missing and cannot be downloaded, is damaged, or is of another data set.
    """
    folder = Path(data_dir).expanduser() / reader / "raw"
    images_file, labels_file = IDX_FILES[:2] if train else IDX_FILES[2:]
    need_folder(name, folder)
    with reading(name, folder, IDX_FILES):
        # Not by torchvision: it takes seconds to import, and stops at a file cut short with an empty message.
        images = _read_idx(name, folder / images_file, dims=3)
        labels = _read_idx(name, folder / labels_file, dims=1)
        if images is None or labels is None:
            images, labels = _downloaded(reader, folder, train)
    if images.ndim != 3 or len(images) != len(labels):
        found = f"{tuple(images.shape)} images, {tuple(labels.shape)} labels"
        reason = f"its files do not belong together ({found})"
        raise missing(name, folder, IDX_FILES, reason=reason)
    return images.unsqueeze(1), labels.long()


def _downloaded(reader: str, folder: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Lets torchvision fetch the files and read them."""
    import torchvision

    data_set = getattr(torchvision.datasets, reader)
    root = folder.parents[1]
    data = data_set(root, train=train, download=True)
    return torch.as_tensor(data.data), torch.as_tensor(data.targets)


def _read_idx(name: str, path: Path, dims: int) -> Tensor | None:
    """Returns the bytes of an idx file as a uint8 tensor of `dims` dimensions, None where there is no such file.

    It begins with 0, 0, type, number of dimensions, then each dimension in 4 bytes, high byte first.
    """
    if not path.is_file():
        return None
    content = np.fromfile(path, dtype=np.uint8)
    start = 4 + 4 * dims
    head = content[:start].tobytes()
    magic = bytes([0, 0, 8, dims])
    if len(head) < start or head[:4] != magic:
        raise UsageError(f"{name}: {path} is damaged: it does not begin as an idx file; put a whole one there")
    shape = struct.unpack_from(f">{dims}I", head, offset=4)
    expected = start + math.prod(shape)
    if len(content) != expected:
        sizes = f"{len(content):,} bytes, not {expected:,}"
        raise UsageError(f"{name}: {path} is damaged: {sizes}; put a whole one there")
    # A view: the pixels are not copied a second time.
    return torch.from_numpy(content[start:]).view(shape)


def cifar_part(name: str, data_dir: str, train: bool, *, instead: str = "") -> tuple[Tensor, Tensor]:
    """Reads one part of CIFAR10 or CIFAR100 from its pickled batches, downloading them where they are missing.

    torchvision compares each file's md5 sum with the published one before it unpickles anything.

    Args:
        name: torchvision's class.
        data_dir: the batches lie in a folder of it.
        train: training part or test part.
        instead: what else may be put there, for messages.

    Returns:
        images, uint8 (N, 3, 32, 32), and labels, int64 (N,).
    """
    import torchvision
    from torchvision.datasets.utils import check_integrity

    reader: Any = getattr(torchvision.datasets, name)
    root = Path(data_dir).expanduser()
    folder = root / reader.base_folder
    need_folder(name, folder)
    sums = dict((*reader.train_list, *reader.test_list))
    sums[reader.meta["filename"]] = reader.meta["md5"]
    wanted = ", ".join(sums)
    if instead:
        wanted = f"{instead}, or {wanted}"
    files = [wanted]
    with reading(name, folder, files, url=reader.url):
        wrong = [file for file, md5 in sums.items() if not check_integrity(folder / file, md5)]
        damaged = [file for file in wrong if (folder / file).exists()]
        if damaged:  # a download would write over what the user put there
            reason = f"{', '.join(damaged)} damaged (not the published md5 sum)"
            raise missing(name, folder, files, reason=reason, url=reader.url)
        data = reader(root, train=train, download=bool(wrong))
        images = torch.from_numpy(data.data)
        labels = torch.tensor(data.targets)
    return images.permute(0, 3, 1, 2).contiguous(), labels  # stored as (N, H, W, C)
