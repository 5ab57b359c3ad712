"""MNIST's idx files and CIFAR's batches: read right, and refused in one line where missing or damaged."""

import importlib
import pickle
import random
import socket
import sys

import numpy as np
import pytest
import torch
import torchvision

from data_sets._files import reading
from data_sets.CIFAR10 import CIFAR10
from data_sets.CIFAR100 import CIFAR100
from data_sets.FASHIONMNIST import FASHIONMNIST
from data_sets.MNIST import MNIST
from pruning.errors import UsageError

IDX = [(MNIST, "MNIST"), (FASHIONMNIST, "FashionMNIST")]
CIFAR = [(CIFAR10, torchvision.datasets.CIFAR10), (CIFAR100, torchvision.datasets.CIFAR100)]
ALL = ["MNIST", "FASHIONMNIST", "CIFAR10", "CIFAR100", "OMNIGLOT", "IMAGENETTE", "IMAGEWOOF", "TINYIMAGENET"]


def refusal(function, *arguments) -> str:
    """The message, which must be one line."""
    with pytest.raises(UsageError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


@pytest.mark.parametrize(("data_set", "folder"), IDX)
def test_idx_files_are_read_as_written(data_set, folder, tmp_path, write_idx):
    images, labels = write_idx(tmp_path / folder / "raw")
    got, got_labels = data_set(str(tmp_path)).train()
    assert got.dtype == torch.uint8 and np.array_equal(got[:, 0], images)
    assert got_labels.dtype == torch.int64 and np.array_equal(got_labels, labels)
    assert data_set(str(tmp_path)).test()[0].shape == (10, 1, 28, 28)


def test_whole_idx_files_are_read_without_torchvision_which_takes_seconds_to_import(tmp_path, write_idx, monkeypatch):
    write_idx(tmp_path / "MNIST" / "raw")
    monkeypatch.setitem(sys.modules, "torchvision", None)  # so that importing it fails
    assert len(MNIST(str(tmp_path)).train()[0]) == 30


@pytest.mark.parametrize("size", [0, 3, 10, 16, 100, 30 * 784 + 15, 30 * 784 + 17])
def test_an_idx_file_cut_short_or_too_long_is_named(size, tmp_path, write_idx):
    write_idx(tmp_path / "MNIST" / "raw")
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes((file.read_bytes() + b"x")[:size])
    assert f"{file} is damaged" in refusal(MNIST(str(tmp_path)).train)
    assert len(MNIST(str(tmp_path)).test()[0]) == 10  # the other part is whole


def test_an_idx_file_of_another_kind_is_named(tmp_path, write_idx):
    raw = tmp_path / "MNIST" / "raw"
    write_idx(raw)
    (raw / "train-labels-idx1-ubyte").write_bytes((raw / "train-images-idx3-ubyte").read_bytes())
    assert "train-labels-idx1-ubyte is damaged" in refusal(MNIST(str(tmp_path)).train)


def test_images_and_labels_of_different_number_are_refused(tmp_path, write_idx):
    write_idx(tmp_path / "MNIST" / "raw", train=30)
    labels = (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").read_bytes()
    write_idx(tmp_path / "MNIST" / "raw", train=20)
    (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(labels)
    assert "do not belong together" in refusal(MNIST(str(tmp_path)).train)


def test_random_damage_never_ends_in_a_traceback(tmp_path, write_idx):
    raw = tmp_path / "MNIST" / "raw"
    write_idx(raw)
    whole = {file: file.read_bytes() for file in raw.iterdir()}
    rng = random.Random(0)
    for _ in range(60):
        file = rng.choice(sorted(whole))
        damaged = bytearray(whole[file])
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(20) % len(damaged)] = rng.randrange(256)
        file.write_bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
        for part in (MNIST(str(tmp_path)).train, MNIST(str(tmp_path)).test):
            try:
                images, labels = part()
            except UsageError as error:
                assert "\n" not in str(error)
            else:
                assert len(images) == len(labels) > 0
        file.write_bytes(whole[file])


@pytest.mark.parametrize(("data_set", "reader"), CIFAR)
def test_cifar_batches_are_read_as_written(data_set, reader, tmp_path, write_cifar):
    written = write_cifar(reader, tmp_path)
    for part, files in (("train", reader.train_list), ("test", reader.test_list)):
        images, labels = getattr(data_set(str(tmp_path)), part)()
        expected = np.concatenate([written[file][0] for file, _ in files]).reshape(-1, 3, 32, 32)
        assert images.dtype == torch.uint8 and images.is_contiguous() and np.array_equal(images, expected)
        assert labels.dtype == torch.int64 and labels.tolist() == [y for file, _ in files for y in written[file][1]]


class Explosive:
    """A pickle that would leave a file where it is read."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


@pytest.mark.parametrize(("data_set", "reader"), CIFAR)
def test_a_batch_without_the_published_sum_is_named_and_never_unpickled(data_set, reader, tmp_path, write_cifar):
    write_cifar(reader, tmp_path)
    file = reader.train_list[0][0]
    (tmp_path / reader.base_folder / file).write_bytes(pickle.dumps(Explosive(tmp_path / "exploded")))
    message = refusal(data_set(str(tmp_path)).train)
    assert f"{file} damaged" in message and str(tmp_path / reader.base_folder) in message
    assert not (tmp_path / "exploded").exists()


def test_missing_cifar_batches_name_every_file(tmp_path, write_cifar):
    reader = torchvision.datasets.CIFAR10
    write_cifar(reader, tmp_path)
    (tmp_path / reader.base_folder / "data_batch_3").unlink()
    message = refusal(CIFAR10(str(tmp_path)).train)
    assert all(file in message for file in ("data_batch_3", "test_batch", "batches.meta", reader.base_folder))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("part", ["train", "test"])
def test_without_data_or_network_the_folder_is_named(name, part, tmp_path):
    data_set = getattr(importlib.import_module(f"data_sets.{name}"), name)
    message = refusal(getattr(data_set(str(tmp_path / "nothing" / "here")), part))
    assert message.startswith(f"{name}: ") and str(tmp_path / "nothing" / "here") in message and "Put " in message


@pytest.mark.parametrize("name", [*ALL, "IMAGEFOLDER"])
def test_a_file_where_the_folder_should_be(name, tmp_path):
    data_set = getattr(importlib.import_module(f"data_sets.{name}"), name)
    (tmp_path / "file").write_text("x")
    message = refusal(lambda: data_set(str(tmp_path / "file")).train())
    assert "is a file, but a folder should be there" in message


def test_cifar10_says_that_pictures_would_do_as_well(tmp_path):
    assert f"Put pictures into {tmp_path}/cifar10/{{train,test}}/<class>, or data_batch_1" in refusal(
        CIFAR10(str(tmp_path)).train
    )


def test_downloads_give_up_soon_and_the_sockets_of_others_are_left_alone(tmp_path):
    before = socket.getdefaulttimeout()
    with pytest.raises(UsageError, match="Put it into"), reading("X", tmp_path, ["it"]):
        assert socket.getdefaulttimeout() <= 10
        raise EOFError
    assert socket.getdefaulttimeout() == before
