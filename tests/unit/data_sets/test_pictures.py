"""Folders of pictures: labels, sizes, the cache beside them, damage."""

import os
import random

import numpy as np
import pytest
import torch
from PIL import Image

import data_sets._pictures as pictures
from data_sets._batches import make_batches
from data_sets.CIFAR10 import CIFAR10, CLASSES
from data_sets.IMAGEFOLDER import IMAGEFOLDER
from data_sets.IMAGENETTE import IMAGENETTE
from data_sets.IMAGEWOOF import IMAGEWOOF
from data_sets.OMNIGLOT import OMNIGLOT
from data_sets.TINYIMAGENET import TINYIMAGENET
from pruning.errors import UsageError
from tests.support.tiers import thorough


def refusal(function, *arguments) -> str:
    """The message, which must be one line."""
    with pytest.raises(UsageError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


def values(images):
    """The one colour of each picture."""
    assert images.flatten(1).float().std(1).max() <= 2  # JPEG may be off by one or two
    return images.flatten(1).float().mean(1).round().int().tolist()


@pytest.fixture
def cats_and_dogs(tmp_path, write_pictures):
    write_pictures(tmp_path / "train", ["cat", "dog"])
    write_pictures(tmp_path / "test", ["cat", "dog"], count=2)
    return tmp_path


@pytest.fixture
def decoded(monkeypatch):
    """The files that are decoded from now on."""
    seen = []
    decode = pictures.decode
    monkeypatch.setattr(pictures, "decode", lambda name, file, shape: seen.append(file) or decode(name, file, shape))
    return seen


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_cifar10_reads_folders_in_the_order_of_the_original_labels(ending, tmp_path, write_pictures):
    for part, count in (("train", 3), ("test", 1)):
        write_pictures(tmp_path / "cifar10" / part, CLASSES, count, ending=ending)
    images, labels = CIFAR10(str(tmp_path)).train()
    assert images.shape == (30, 3, 32, 32) and images.dtype == torch.uint8
    assert labels.tolist() == [label for label in range(10) for _ in range(3)]
    assert values(images) == [10 * label + number for label in range(10) for number in range(3)]
    assert values(CIFAR10(str(tmp_path)).test()[0]) == [10 * label for label in range(10)]


def test_cifar10_is_not_confused_by_the_empty_folder_of_a_failed_download(tmp_path, write_pictures):
    write_pictures(tmp_path / "cifar10" / "test", CLASSES, 1)
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert len(CIFAR10(str(tmp_path)).test()[0]) == 10


def test_cifar10_wants_its_ten_classes(tmp_path, write_pictures):
    write_pictures(tmp_path / "cifar10" / "train", [*CLASSES[:9], "trucks"])
    message = refusal(CIFAR10(str(tmp_path)).train)
    assert "lacks class folder 'truck'" in message and "Did you mean trucks" in message


def test_decoded_pictures_are_kept_and_used_again(cats_and_dogs, decoded):
    first = IMAGEFOLDER(str(cats_and_dogs), image_size=8).train()
    assert len(decoded) == 6
    again = IMAGEFOLDER(str(cats_and_dogs), image_size=8).train()
    assert len(decoded) == 6 and torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert IMAGEFOLDER(str(cats_and_dogs), image_size=9).train()[0].shape == (6, 3, 9, 9)  # not the pictures of size 8
    assert not list(cats_and_dogs.glob("**/*.tmp"))


def _replace(folder):
    Image.new("RGB", (32, 32), (99, 99, 99)).save(folder / "train" / "cat" / "0000.png")


def _rename(folder):
    (folder / "train" / "cat" / "0000.png").rename(folder / "train" / "dog" / "0009.png")


def _remove(folder):
    (folder / "train" / "cat" / "0000.png").unlink()


@pytest.mark.parametrize(("change", "expected"), [(_replace, [99, 1, 2, 10, 11, 12]), (_rename, [1, 2, 10, 11, 12, 0]),
                                                  (_remove, [1, 2, 10, 11, 12])])  # fmt: skip
def test_a_stale_cache_is_rebuilt(change, expected, cats_and_dogs):
    IMAGEFOLDER(str(cats_and_dogs)).train()
    change(cats_and_dogs)
    assert values(IMAGEFOLDER(str(cats_and_dogs)).train()[0]) == expected


def test_a_damaged_cache_is_rebuilt(cats_and_dogs):
    expected = IMAGEFOLDER(str(cats_and_dogs), image_size=8).train()[0]
    (cache,) = cats_and_dogs.glob(".train-*.pt")
    whole = cache.read_bytes()
    rng = random.Random(0)
    damages = [b"", b"garbage", whole[: len(whole) // 2]]
    for _ in range(40):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        damages.append(bytes(flipped))
    for damage in damages:
        cache.write_bytes(damage)
        assert torch.equal(IMAGEFOLDER(str(cats_and_dogs), image_size=8).train()[0], expected)


def test_a_cache_runs_nothing(cats_and_dogs):
    class Explosive:
        def __reduce__(self):
            return open, (str(cats_and_dogs / "exploded"), "w")

    IMAGEFOLDER(str(cats_and_dogs)).train()
    (cache,) = cats_and_dogs.glob(".train-*.pt")
    torch.save({"images": Explosive()}, cache)
    assert len(IMAGEFOLDER(str(cats_and_dogs)).train()[0]) == 6
    assert not (cats_and_dogs / "exploded").exists()


def test_where_the_cache_cannot_be_written_the_pictures_still_come(cats_and_dogs, monkeypatch):
    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    assert len(IMAGEFOLDER(str(cats_and_dogs)).train()[0]) == 6
    assert not list(cats_and_dogs.glob(".train-*"))


def test_many_pictures_are_streamed_and_give_the_same_batches(cats_and_dogs, monkeypatch):
    def epoch(data_set):
        return list(make_batches(data_set, "train", batch_size=4, device="cpu").epoch(1))

    at_once = epoch(IMAGEFOLDER(str(cats_and_dogs)))
    monkeypatch.setattr(pictures, "DECODED_BYTES", 10)
    data_set = IMAGEFOLDER(str(cats_and_dogs))
    assert isinstance(data_set.train(), pictures.PictureFiles)
    streamed = epoch(data_set)
    assert all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(at_once, streamed, strict=True))


def test_pictures_are_shrunk_cut_to_the_middle_and_turned(tmp_path):
    wide = np.zeros((40, 80, 3), dtype=np.uint8)
    wide[:, 20:60] = 200  # the middle square
    Image.fromarray(wide).save(tmp_path / "wide.png")
    middle = pictures.decode("X", str(tmp_path / "wide.png"), (3, 20, 20))
    assert (middle[:, :, 1:-1] == 200).all() and (middle > 150).all()  # the filter mixes the outermost columns
    upright = np.zeros((30, 30), dtype=np.uint8)
    upright[:10] = 200  # bright on top
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    Image.fromarray(upright).save(tmp_path / "turned.png", exif=exif)
    turned = pictures.decode("X", str(tmp_path / "turned.png"), (1, 30, 30))
    assert turned.shape == (1, 30, 30) and (turned[0, 20:] == 200).all() and (turned[0, :20] == 0).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "LA", "I;16"])
def test_any_kind_of_picture_becomes_three_channels(mode, tmp_path):
    ending = "tif" if mode == "CMYK" else "png"
    Image.new(mode, (9, 7)).save(tmp_path / f"picture.{ending}")
    assert pictures.decode("X", str(tmp_path / f"picture.{ending}"), (3, 5, 5)).shape == (3, 5, 5)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\xd8\xff\xe0 half a header"])
def test_a_damaged_picture_is_named(content, cats_and_dogs, monkeypatch):
    bad = cats_and_dogs / "train" / "dog" / "0001.jpg"
    bad.write_bytes(content)
    assert f"{bad} is no readable picture" in refusal(IMAGEFOLDER(str(cats_and_dogs)).train)
    monkeypatch.setattr(pictures, "DECODED_BYTES", 10)
    loader = make_batches(IMAGEFOLDER(str(cats_and_dogs)), "train", batch_size=4, device="cpu", workers=1)
    assert f"{bad} is no readable picture" in refusal(list, loader)


def test_a_picture_cut_short_is_named(cats_and_dogs):
    file = cats_and_dogs / "train" / "dog" / "0001.jpg"
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:1500])
    assert f"{file} is no readable picture" in refusal(IMAGEFOLDER(str(cats_and_dogs)).train)


def test_the_users_own_folders(cats_and_dogs):
    data_set = IMAGEFOLDER(str(cats_and_dogs), image_size=16)
    (cats_and_dogs / "train" / "cat" / "deeper").mkdir()
    os.replace(cats_and_dogs / "train" / "cat" / "0002.png", cats_and_dogs / "train" / "cat" / "deeper" / "0002.PNG")
    (cats_and_dogs / "train" / "cat" / "notes.txt").write_text("no picture")
    (cats_and_dogs / "train" / ".hidden").mkdir()
    images, labels = data_set.train()
    assert (data_set.num_classes, data_set.input_shape) == (2, (3, 16, 16))
    assert values(images) == [0, 1, 2, 10, 11, 12] and labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert values(data_set.test()[0]) == [0, 1, 10, 11]


def test_val_serves_where_there_is_no_test(cats_and_dogs):
    (cats_and_dogs / "test").rename(cats_and_dogs / "val")
    assert len(IMAGEFOLDER(str(cats_and_dogs)).test()[0]) == 4


def test_folders_that_do_not_fit_are_refused(cats_and_dogs, write_pictures):
    folder = str(cats_and_dogs)
    assert "image_size 0" in refusal(IMAGEFOLDER, folder, 0)
    (cats_and_dogs / "train" / "empty").mkdir()
    assert "empty holds no pictures" in refusal(IMAGEFOLDER(folder).train)
    assert "lacks class folder 'empty'" in refusal(IMAGEFOLDER(folder).test)
    (cats_and_dogs / "train" / "empty").rmdir()
    write_pictures(cats_and_dogs / "test", ["horse"])
    assert "has the unknown class folder 'horse'" in refusal(IMAGEFOLDER(folder).test)
    (cats_and_dogs / "train").rename(cats_and_dogs / "training")
    message = refusal(IMAGEFOLDER, folder)
    assert "it has test. Put train/<class>/*.jpg" in message
    (cats_and_dogs / "train").mkdir()
    assert "train is empty" in refusal(IMAGEFOLDER, folder)


@pytest.mark.parametrize(("data_set", "folder"), [(IMAGENETTE, "imagenette2-160"), (IMAGEWOOF, "imagewoof2-160")])
def test_ten_classes_of_imagenet(data_set, folder, tmp_path, write_pictures):
    for part, count in (("train", 2), ("val", 1)):
        write_pictures(tmp_path / folder / part, data_set.classes, count, size=(50, 40), ending="JPEG")
    made = data_set(str(tmp_path), image_size=32)
    images, labels = made.train()
    assert images.shape == (20, *made.input_shape) and made.input_shape == (3, 32, 32)
    assert values(images) == [10 * label + number for label in range(10) for number in range(2)]
    assert made.test()[1].tolist() == list(range(10)) and len(set(made.classes)) == 10


@pytest.fixture
def tiny_imagenet(tmp_path, write_pictures):
    root = tmp_path / "tiny-imagenet-200"
    wnids = [f"n{number:08d}" for number in range(200)]
    for wnid in wnids:
        write_pictures(root / "train" / wnid, ["images"], count=1, size=(64, 64), ending="JPEG")
    write_pictures(root / "val", ["images"], count=3, size=(64, 64), ending="JPEG")
    lines = [f"{number:04d}.JPEG\t{wnids[199 - number]}\t0\t0\t9\t9\n" for number in range(3)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return tmp_path


def test_tiny_imagenet(tiny_imagenet):
    data_set = TINYIMAGENET(str(tiny_imagenet))
    assert data_set.train()[1].tolist() == list(range(200))
    images, labels = data_set.test()
    assert images.shape == (3, 3, 64, 64) and values(images) == [0, 1, 2] and labels.tolist() == [199, 198, 197]


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), ("a.JPEG\tn9\n", "line 1 is damaged"),
                                               ("0000.JPEG", "line 1 is damaged"), ("\0\xff", "line 1 is damaged"),
                                               ("z.JPEG\tn00000001", "z.JPEG"), (None, "val_annotations")])  # fmt: skip
def test_damaged_notes_of_tiny_imagenet_are_refused(text, message, tiny_imagenet):
    notes = tiny_imagenet / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    notes.unlink() if text is None else notes.write_text(text)
    assert message in refusal(TINYIMAGENET(str(tiny_imagenet)).test)


@pytest.fixture
def omniglot(tmp_path):
    """All 1,623 characters, linked to 20 drawings whose grey value is 255 minus the person's number."""
    for person in range(1, 21):
        Image.new("L", (105, 105), 255 - person).save(tmp_path / f"{person:02d}.png")
    for half, alphabets, characters in (("images_background", 4, 241), ("images_evaluation", 1, 659)):
        for alphabet in range(alphabets):
            for character in range(characters):
                folder = tmp_path / "omniglot-py" / half / f"A{alphabet}" / f"character{character:03d}"
                folder.mkdir(parents=True)
                for person in range(1, 21):
                    os.link(tmp_path / f"{person:02d}.png", folder / f"0000_{person:02d}.png")
    return tmp_path


@thorough
def test_omniglot_gives_fifteen_persons_to_training_and_five_to_the_test(omniglot):
    data_set = OMNIGLOT(str(omniglot), image_size=4)
    images, labels = data_set.train()
    assert images.shape == (24345, 1, 4, 4) and labels.bincount().tolist() == [15] * 1623
    assert values(images[:17]) == [*range(1, 16), 1, 2]
    images, labels = data_set.test()
    assert len(images) == 8115 and values(images[:6]) == [16, 17, 18, 19, 20, 16]
    lost = next((omniglot / "omniglot-py" / "images_evaluation").rglob("*_07.png"))
    lost.unlink()
    assert "holds 19 drawings, not 20" in refusal(data_set.train)


def test_omniglot_in_part_is_refused(tmp_path):
    for half in ("images_background", "images_evaluation"):
        (tmp_path / "omniglot-py" / half).mkdir(parents=True)
    assert "0 characters, not 1623" in refusal(OMNIGLOT(str(tmp_path)).train)
    assert "image_size 106 is above 105" in refusal(OMNIGLOT, str(tmp_path), 106)
