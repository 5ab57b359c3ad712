"""The sets that torchvision reads and downloads: MNIST's idx files and CIFAR's pickled batches, as byte tensors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_sets._files import missing, need_folder, reading
from pruning.errors import UsageError


def idx_part(name: str, reader: str, data_dir: str, train: bool) -> tuple[Tensor, Tensor]:
    """Reads one part of a data set stored like MNIST, downloading it where it is missing.

    Args:
        name: of the data set, for messages.
        reader: torchvision's class, whose name is also the folder's.
        data_dir: files lie in `data_dir/<reader>/raw`.
        train: training part or test part.

    Returns:
        images, uint8 (N, 1, H, W), and labels, int64 (N,).
    """
    import torchvision

    folder = Path(data_dir).expanduser() / reader / "raw"
    prefix = "train" if train else "t10k"
    names = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    need_folder(name, folder)
    with reading(name, folder, names):
        # Before torchvision looks: it stops at a file cut short with an empty message.
        _check_idx(name, folder / f"{prefix}-images-idx3-ubyte", dims=3)
        _check_idx(name, folder / f"{prefix}-labels-idx1-ubyte", dims=1)
        data = getattr(torchvision.datasets, reader)(folder.parents[1], train=train, download=True)
    images, labels = torch.as_tensor(data.data), torch.as_tensor(data.targets)
    if images.ndim != 3 or len(images) != len(labels):
        found = f"{tuple(images.shape)} images, {tuple(labels.shape)} labels"
        raise missing(name, folder, names, reason=f"its files do not belong together ({found})")
    return images.unsqueeze(1), labels


def _check_idx(name: str, path: Path, dims: int) -> None:
    """An idx file begins with 0, 0, type, number of dimensions, then each dimension in 4 bytes, high byte first."""
    if not path.is_file():
        return  # torchvision will fetch it or say that it cannot
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4 + 4 * dims)
    if len(head) < 4 + 4 * dims or head[:4] != bytes([0, 0, 8, dims]):
        raise UsageError(f"{name}: {path} is damaged: it does not begin as an idx file; put a whole one there")
    shape = [int.from_bytes(head[at : at + 4], "big") for at in range(4, len(head), 4)]
    if size != len(head) + math.prod(shape):
        expected = f"{len(head) + math.prod(shape):,}"
        raise UsageError(f"{name}: {path} is damaged: {size:,} bytes, not {expected}; put a whole one there")


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
    files = [f"{instead}, or {', '.join(sums)}" if instead else ", ".join(sums)]
    with reading(name, folder, files, url=reader.url):
        wrong = [file for file, md5 in sums.items() if not check_integrity(folder / file, md5)]
        damaged = [file for file in wrong if (folder / file).exists()]
        if damaged:  # a download would write over what the user put there
            reason = f"{', '.join(damaged)} damaged (not the published md5 sum)"
            raise missing(name, folder, files, reason=reason, url=reader.url)
        data = reader(root, train=train, download=bool(wrong))
        images, labels = torch.from_numpy(data.data), torch.tensor(data.targets)
    return images.permute(0, 3, 1, 2).contiguous(), labels  # stored as (N, H, W, C)
