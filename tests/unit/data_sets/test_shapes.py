"""Pictures that are made up are the same everywhere, and every pixel's class is what can be seen."""

import torch

from data_sets.SHAPES import SHAPES


def test_the_grey_of_a_pixel_hangs_on_its_class_and_nothing_is_drawn_from_the_global_state():
    before = torch.get_rng_state()
    pictures, classes = SHAPES().test()
    assert torch.equal(torch.get_rng_state(), before)
    again, same = SHAPES().test()
    assert torch.equal(again, pictures) and torch.equal(same, classes)
    assert pictures.shape == (100, 1, 24, 24) and classes.shape == (100, 24, 24)
    for picture, classes_of in zip(pictures.double() / 255, classes, strict=True):
        behind = picture[0][classes_of == 0].mean()
        for kind in (1, 2):
            # What lies behind is at most 0.4, a shape at least 0.5; noise of so many pixels hides no tenth of it.
            shape = picture[0][classes_of == kind]
            assert len(shape) < 12 or shape.mean() > behind


def test_the_square_is_one_and_in_front():
    _, classes = SHAPES().train()
    for classes_of in classes[:50]:
        rows, columns = (classes_of == 2).nonzero().unbind(1)
        height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        assert len(rows) == height * width and abs(height - width) <= 1
