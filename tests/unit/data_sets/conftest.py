"""Writers of tiny data sets in their on-disk formats, and a wall around the network."""

import hashlib
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Every attempt to connect fails at once, as on a machine without a network."""

    def refuse(*_args, **_kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def write_idx():
    """Writes the four files of an MNIST-like set; returns its training images and labels."""

    def write(raw: Path, train: int = 30, test: int = 10) -> tuple[np.ndarray, np.ndarray]:
        raw.mkdir(parents=True, exist_ok=True)
        rng = np.random.RandomState(0)
        written = {}
        for part, count in (("train", train), ("t10k", test)):
            images = rng.randint(0, 256, (count, 28, 28)).astype(np.uint8)
            labels = (np.arange(count) % 10).astype(np.uint8)
            for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
                sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
                (raw / f"{part}-{kind}-ubyte").write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())
            written[part] = images, labels
        return written["train"]

    return write


@pytest.fixture
def write_cifar(monkeypatch):
    """Writes pickled batches and makes torchvision's class expect their md5 sums; returns {file: (images, labels)}."""

    def write(reader, data_dir: Path, per_batch: int = 4) -> dict[str, tuple[np.ndarray, list[int]]]:
        folder = data_dir / reader.base_folder
        folder.mkdir(parents=True)
        rng = np.random.RandomState(1)
        key = "fine_labels" if "100" in reader.__name__ else "labels"
        written = {}

        def put(file: str, content) -> str:
            raw = pickle.dumps(content, protocol=2)
            (folder / file).write_bytes(raw)
            return hashlib.md5(raw).hexdigest()

        def put_list(files):
            sums = []
            for file, _ in files:
                images, labels = rng.randint(0, 256, (per_batch, 3072)).astype(np.uint8), list(range(per_batch))
                written[file] = images, labels
                sums.append([file, put(file, {"data": images, key: labels})])
            return sums

        monkeypatch.setattr(reader, "train_list", put_list(reader.train_list))
        monkeypatch.setattr(reader, "test_list", put_list(reader.test_list))
        meta = dict(reader.meta)
        meta["md5"] = put(meta["filename"], {meta["key"]: ["some"]})
        monkeypatch.setattr(reader, "meta", meta)
        return written

    return write


@pytest.fixture
def write_pictures():
    """Writes `count` pictures per class, all of one colour that depends on class and number: 10 * class + number."""

    def write(folder: Path, classes, count: int = 3, size=(32, 32), ending: str = "png") -> None:
        for label, name in enumerate(classes):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                value = (10 * label + number) % 256
                Image.new("RGB", size, (value, value, value)).save(folder / name / f"{number:04d}.{ending}")

    return write
