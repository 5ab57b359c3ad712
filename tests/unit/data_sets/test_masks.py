"""Pictures with a class for every pixel: pairs, sizes, what the values of a mask mean."""

import numpy as np
import pytest
import torch
from PIL import Image

import data_sets.SEGMENTATIONFOLDER as segmentation
from data_sets._batches import make_batches
from data_sets.SEGMENTATIONFOLDER import SEGMENTATIONFOLDER
from pruning.errors import UsageError


def refusal(function, *arguments):
    """The message, which must be one line."""
    with pytest.raises(UsageError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


@pytest.fixture
def write(tmp_path):
    """Writes pictures whose pixels say the class of the mask's, times ten, and the masks."""

    def written(part="", count=5, size=(16, 16), values=(0, 1, 2), ending=""):
        for kind in ("images", "masks"):
            (tmp_path / part / kind).mkdir(parents=True, exist_ok=True)
        random = np.random.RandomState(len(part))
        for number in range(count):
            blocks = random.choice(values, (size[1] // 4, size[0] // 4)).astype(np.uint8)
            blocks.flat[: len(values)] = values
            mask = blocks.repeat(4, 0).repeat(4, 1)
            picture = np.stack([mask.astype(int) * 10 % 256] * 3, axis=2).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / part / "images" / f"p{number}.png")
            Image.fromarray(mask).save(tmp_path / part / "masks" / f"p{number}{ending}.png")
        return str(tmp_path)

    return written


def test_pictures_and_masks_stay_together(write):
    data_set = SEGMENTATIONFOLDER(write(count=10), image_size=16)
    assert data_set.num_classes == 3 and data_set.input_shape == (3, 16, 16)
    (pictures, classes), (test_pictures, _) = data_set.train(), data_set.test()
    assert (len(pictures), len(test_pictures)) == (8, 2)
    assert pictures.dtype == torch.uint8 and classes.dtype == torch.int64
    assert torch.equal(pictures[:, 0].long(), 10 * classes)
    again = SEGMENTATIONFOLDER(str(data_set.root), image_size=16).train()
    assert torch.equal(again[0], pictures) and torch.equal(again[1], classes)


def test_masks_are_shrunk_like_pictures_and_their_values_not_mixed(write):
    data_set = SEGMENTATIONFOLDER(write(size=(48, 32), values=(0, 200)), image_size=16)
    pictures, classes = data_set.train()
    assert set(classes.unique().tolist()) == {0, 200}
    # The middle is kept of both. A picture's colours are mixed where blocks meet, 200 * 10 % 256 = 208 and 0.
    assert torch.equal(pictures[:, 0] > 104, classes == 200)


def test_named_parts_and_names_with_mask_at_the_end(write):
    write("train", count=4, ending="_mask")
    data_set = SEGMENTATIONFOLDER(write("val", count=2), image_size=16)
    assert [len(part[0]) for part in (data_set.train(), data_set.test())] == [4, 2]


def test_255_is_no_class_unless_there_is_nothing_else_but_0(write):
    data_set = SEGMENTATIONFOLDER(write(values=(0, 3, 255)), image_size=16)
    assert data_set.num_classes == 4 and set(data_set.train()[1].unique().tolist()) == {-100, 0, 3}
    assert "2 in no mask" in data_set.notes[0]
    batches = make_batches(data_set, "train", batch_size=2, device="cpu")
    assert next(iter(batches))[1].min() == -100


def test_masks_of_0_and_255_have_two_classes(write, tmp_path):
    write("train", values=(0, 255))
    data_set = SEGMENTATIONFOLDER(write("test", values=(0, 255)), image_size=16)
    pictures, classes = data_set.train()
    assert data_set.num_classes == 2
    assert torch.equal(pictures[:, 0] == 0, classes == 0) and set(classes.unique().tolist()) == {0, 1}
    write("test", values=(0, 7))
    assert "holds 7" in refusal(SEGMENTATIONFOLDER(str(tmp_path), image_size=16).test)


def test_many_pictures_are_read_one_by_one(write, monkeypatch):
    folder = write(count=10)
    pictures, classes = SEGMENTATIONFOLDER(folder, image_size=16).train()
    monkeypatch.setattr(segmentation, "DECODED_BYTES", 10)
    data_set = SEGMENTATIONFOLDER(folder, image_size=16)
    assert data_set.num_classes == 3
    for number, (picture, target) in zip(range(8), data_set.train(), strict=False):
        assert torch.equal(picture, pictures[number]) and torch.equal(target, classes[number])


@pytest.mark.parametrize("mode", ["P", "RGB", "I;16", "1", "LA"])
def test_ways_to_save_a_mask(write, tmp_path, mode):
    folder = write(count=2, values=(0, 1))
    for file in (tmp_path / "masks").iterdir():
        values = np.array(Image.open(file))
        if mode == "I;16":
            Image.fromarray(values.astype(np.uint16)).save(file)
        elif mode == "P":
            picture = Image.fromarray(values).convert("P")
            picture.putpalette([0, 0, 0, 250, 30, 30])
            picture.putdata(values.flatten().tolist())
            picture.save(file)
        else:
            Image.fromarray(values if mode != "1" else values * 255).convert(mode).save(file)
    pictures, classes = SEGMENTATIONFOLDER(folder, image_size=16).train()
    assert torch.equal(pictures[:, 0].long(), 10 * classes)


def test_what_does_not_belong_together_is_refused(write, tmp_path):
    folder = write(count=3)
    (tmp_path / "masks" / "p1.png").rename(tmp_path / "masks" / "other.png")
    assert "p1.png has no mask" in refusal(SEGMENTATIONFOLDER, folder)
    (tmp_path / "images" / "p1.png").unlink()
    assert "other.png has no picture" in refusal(SEGMENTATIONFOLDER, folder)
    (tmp_path / "masks" / "other.png").unlink()
    Image.new("L", (8, 9)).save(tmp_path / "masks" / "p0.png")
    message = refusal(SEGMENTATIONFOLDER, folder)
    assert "16x16" in message and "8x9" in message
    Image.new("RGB", (16, 16), (1, 2, 3)).save(tmp_path / "masks" / "p0.png")
    assert "colours" in refusal(SEGMENTATIONFOLDER, folder)
    (tmp_path / "masks" / "p0.png").write_bytes(b"no picture")
    assert "p0.png is no readable picture" in refusal(SEGMENTATIONFOLDER, folder)


def test_a_folder_of_another_layout_is_told_the_right_one(tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        assert "masks/" in refusal(SEGMENTATIONFOLDER, str(folder))
    (tmp_path / "images").mkdir()
    assert str(tmp_path / "masks") in refusal(SEGMENTATIONFOLDER, str(tmp_path))
    (tmp_path / "masks").mkdir()
    assert "no pictures" in refusal(SEGMENTATIONFOLDER, str(tmp_path))


def test_a_class_that_only_masks_for_testing_have_is_refused(write, tmp_path):
    write("train", values=(0, 1))
    write("test", values=(0, 5))
    data_set = SEGMENTATIONFOLDER(str(tmp_path), image_size=16)
    assert "label 5" in refusal(lambda: make_batches(data_set, "test", batch_size=2, device="cpu"))
